package main

import (
	"bytes"
	"os"
	"sync"
	"syscall"
)

// logmon reads a task's FIFOs as Nomad's collector of that name does: it opens each once, and is done when the last writer has
// closed. What a driver writes after that is lost, so a driver must keep a writer open for as long as the task runs.
type logmon struct {
	stdout, stderr *pipeLog
}

type pipeLog struct {
	path string
	sync.Mutex
	bytes bytes.Buffer
	done  chan struct{}
}

func collect(folder, task string) *logmon {
	return &logmon{
		stdout: collectFrom(folder + "/." + task + ".stdout.fifo"),
		stderr: collectFrom(folder + "/." + task + ".stderr.fifo"),
	}
}

func collectFrom(path string) *pipeLog {
	demand(syscall.Mkfifo(path, 0o600) == nil, "cannot make %s", path)
	log := &pipeLog{path: path, done: make(chan struct{})}
	go func() {
		defer close(log.done)
		fifo, err := os.Open(path)
		if err != nil {
			return
		}
		defer fifo.Close()
		piece := make([]byte, 64<<10)
		for {
			length, err := fifo.Read(piece)
			log.Lock()
			log.bytes.Write(piece[:length])
			log.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return log
}

func (l *pipeLog) text() string {
	l.Lock()
	defer l.Unlock()
	return l.bytes.String()
}

// finished waits until the last writer has closed and returns everything.
func (l *pipeLog) finished() string {
	receive("the end of "+l.path, l.done)
	return l.text()
}

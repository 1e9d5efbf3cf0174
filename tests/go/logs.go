package main

import (
	"bytes"
	"hash"
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
	bytes  bytes.Buffer
	opened bool // there was a writer
	done   chan struct{}
	hash   hash.Hash // in place of the bytes, for a reader that keeps none
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
	go log.read()
	return log
}

// read reads to the end of the last writer.
func (l *pipeLog) read() {
	defer close(l.done)
	fifo, err := os.Open(l.path)
	if err != nil {
		return
	}
	defer fifo.Close()
	l.Lock()
	l.opened = true
	l.Unlock()
	piece := make([]byte, 64<<10)
	for {
		length, err := fifo.Read(piece)
		l.Lock()
		if l.hash != nil {
			l.hash.Write(piece[:length])
		} else {
			l.bytes.Write(piece[:length])
		}
		l.Unlock()
		if err != nil {
			return
		}
	}
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

// again lets the reader of each FIFO that ended read on, as an agent does before it starts a task once more. One that no writer
// has come to is still waiting.
func (l *logmon) again() {
	for _, log := range []*pipeLog{l.stdout, l.stderr} {
		log.Lock()
		opened := log.opened
		log.opened = false
		log.Unlock()
		if opened {
			receive("the end of "+log.path, log.done)
			log.done = make(chan struct{})
			go log.read()
		}
	}
}

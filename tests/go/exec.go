package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"

	"google.golang.org/grpc"

	"pannier.example/conformance/wire/driver"
)

// execChecks prove the exec of a person at a terminal, and of a script that pipes.
var execChecks = []check{
	{name: "exec: 50 MB through stdin and back, byte-exact, with its end", run: execBulk},
	{name: "exec: stdin ends while output goes on", run: execHalfClose},
	{name: "exec: outputs are apart, exit codes are right", run: execCodes},
	{name: "exec: a terminal has the size of the client's, and follows it", run: execTerminal},
	{name: "exec: the remote process dies with its client", run: execClientGone},
	{name: "exec: a task that ends ends its execs", run: execTaskEnds},
	{name: "exec: a command that does not exist, a task that does not exist", run: execAbsent},
}

// session is one running exec.
type session struct {
	stream grpc.BidiStreamingClient[driver.ExecTaskStreamingRequest, driver.ExecTaskStreamingResponse]
	cancel context.CancelFunc
	done   chan struct{}

	sync.Mutex
	stdout, stderr bytes.Buffer
	closed         int // how many outputs were said to be closed
	code           int32
	exited         bool
	err            error
}

// exec starts a command in a task and collects what it says.
func (a *agent) exec(t *task, tty bool, command ...string) *session {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	s := &session{stream: must(a.driver.ExecTaskStreaming(ctx)), cancel: cancel, done: make(chan struct{})}
	setup := &driver.ExecTaskStreamingRequest_Setup{TaskId: t.id, Command: command, Tty: tty}
	demand(s.stream.Send(&driver.ExecTaskStreamingRequest{Setup: setup}) == nil, "cannot send")
	go s.collect()
	return s
}

func (s *session) collect() {
	defer close(s.done)
	for {
		response, err := s.stream.Recv()
		s.Lock()
		if err != nil {
			s.err = err
			s.Unlock()
			return
		}
		s.stdout.Write(response.GetStdout().GetData())
		s.stderr.Write(response.GetStderr().GetData())
		for _, output := range []*driver.ExecTaskStreamingIOOperation{response.Stdout, response.Stderr} {
			if output.GetClose() {
				s.closed++
			}
		}
		if response.Exited {
			s.exited, s.code = true, response.Result.GetExitCode()
		}
		s.Unlock()
	}
}

// input sends bytes, in pieces as the command line of Nomad does.
func (s *session) input(bytes []byte) {
	for len(bytes) > 0 {
		piece := bytes[:min(len(bytes), 32<<10)]
		bytes = bytes[len(piece):]
		operation := &driver.ExecTaskStreamingIOOperation{Data: piece}
		if s.stream.Send(&driver.ExecTaskStreamingRequest{Stdin: operation}) != nil {
			return
		}
	}
}

// inputEnds closes the command's input.
func (s *session) inputEnds() {
	_ = s.stream.Send(&driver.ExecTaskStreamingRequest{Stdin: &driver.ExecTaskStreamingIOOperation{Close: true}})
}

// size tells the size of the client's terminal.
func (s *session) size(width, height int32) {
	size := &driver.ExecTaskStreamingRequest_TerminalSize{Width: width, Height: height}
	demand(s.stream.Send(&driver.ExecTaskStreamingRequest{TtySize: size}) == nil, "cannot send")
}

// says is what came from the command's standard output so far.
func (s *session) says() string {
	s.Lock()
	defer s.Unlock()
	return s.stdout.String()
}

// ends waits until the stream has ended, which must be after an exit, and returns the exit code.
func (s *session) ends() int32 {
	receive("the end of the exec", s.done)
	demand(errors.Is(s.err, io.EOF), "the stream ends with %v", s.err)
	demand(s.exited, "the stream ends without an exit")
	return s.code
}

// resting starts a task to look into.
func (w *world) resting() (*agent, *task) {
	a := w.launchPodman()
	t, _ := w.start(a, forever, "")
	return a, t
}

// rested ends it.
func (w *world) rested(a *agent, t *task) {
	a.stop(t, "SIGKILL", 1)
	w.destroy(a, t)
	a.end()
}

func execBulk(w *world) {
	a, t := w.resting()
	const size = 50_000_000
	seed := rand.Uint64()
	source := rand.New(rand.NewPCG(seed, 0))
	sent := make([]byte, size)
	for n := range sent {
		sent[n] = byte(source.Uint32())
	}
	s := a.exec(t, false, "/bin/cat")
	go func() {
		s.input(sent)
		s.inputEnds()
	}()
	equal("exit code", s.ends(), 0)
	got := s.stdout.Bytes()
	demand(sha256.Sum256(got) == sha256.Sum256(sent), "seed %d: %d bytes of %d came back, or others", seed, len(got), size)
	equal("stderr", s.stderr.Len(), 0)
	equal("outputs closed", s.closed, 2)
	w.rested(a, t)
}

func execHalfClose(w *world) {
	a, t := w.resting()
	s := a.exec(t, false, "/bin/sh", "-c", "wc -c; echo after; echo late >&2; exit 6")
	s.input([]byte("12345"))
	_ = s.stream.Send(&driver.ExecTaskStreamingRequest{}) // a heartbeat
	s.inputEnds()
	equal("exit code", s.ends(), 6)
	equal("stdout", s.says(), "5\nafter\n")
	equal("stderr", s.stderr.String(), "late\n")
	w.rested(a, t)
}

func execCodes(w *world) {
	a, t := w.resting()
	for _, code := range []int32{0, 1, 42, 255} {
		s := a.exec(t, false, "/bin/sh", "-c", fmt.Sprintf("echo out %[1]d; echo err %[1]d >&2; exit %[1]d", code))
		equal("exit code", s.ends(), code)
		equal("stdout", s.says(), fmt.Sprintf("out %d\n", code))
		equal("stderr", s.stderr.String(), fmt.Sprintf("err %d\n", code))
	}
	s := a.exec(t, false, "/bin/sh", "-c", "kill -TERM $$")
	equal("exit code of a signal", s.ends(), 143)
	w.rested(a, t)
}

func execTerminal(w *world) {
	a, t := w.resting()
	// The shell waits for a line between two looks at the size.
	s := a.exec(t, true, "/bin/sh", "-c", `tty -s && echo terminal; read x; echo "first $(stty size)"; read x; echo "then $(stty size)"; exit 9`)
	s.size(80, 24)
	eventually("the terminal", func() bool { return strings.Contains(s.says(), "terminal") })
	sizes := []struct {
		width, height int32
		said          string
	}{{101, 33, "first 33 101"}, {64, 20, "then 20 64"}}
	for _, one := range sizes {
		s.size(one.width, one.height)
		w.sized(t, one.width, one.height)
		s.input([]byte("\n"))
		eventually(one.said, func() bool { return strings.Contains(s.says(), one.said) })
	}
	equal("exit code", s.ends(), 9)
	w.rested(a, t)
}

// sized waits until a terminal of the task has the size: a client is not told when its wish was fulfilled.
func (w *world) sized(t *task, width, height int32) {
	want := fmt.Sprintf("%d %d", height, width)
	eventually("a terminal of "+want, func() bool {
		out, err := w.podmanExec(t, "/bin/sh", "-c", "for tty in /dev/pts/[0-9]*; do stty size -F $tty; done")
		return err == nil && strings.Contains(out, want)
	})
}

func execClientGone(w *world) {
	a, t := w.resting()
	for _, tty := range []bool{false, true} {
		s := a.exec(t, tty, "/bin/sh", "-c", `echo $$ > /alloc/data/exec; echo up; while :; do sleep 1; done`)
		eventually("it is up", func() bool { return strings.Contains(s.says(), "up") })
		before := t.data("exec")
		there := func() bool {
			out, err := w.podmanExec(t, "/bin/sh", "-c", "[ -e /proc/"+strings.TrimSpace(before)+" ] && echo there || echo gone")
			return err != nil || strings.Contains(out, "there")
		}
		demand(there(), "it does not run")
		s.cancel()
		eventually("the remote process ends", func() bool { return !there() })
		receive("the end of the stream", s.done)
		demand(os.Remove(t.folder+"/alloc/data/exec") == nil, "cannot remove a file")
	}
	w.rested(a, t)
}

func execTaskEnds(w *world) {
	a, t := w.resting()
	s := a.exec(t, false, "/bin/sh", "-c", "echo up; sleep 3600; :")
	eventually("it is up", func() bool { return s.says() == "up\n" })
	a.stop(t, "SIGKILL", 1)
	receive("the end of the exec", s.done)
	w.destroy(a, t)
	a.end()
}

func execAbsent(w *world) {
	a, t := w.resting()
	s := a.exec(t, false, "/bin/no-such-command")
	receive("the end of the exec", s.done)
	demand(!errors.Is(s.err, io.EOF) || s.code == 127, "a command that does not exist ended well: %d", s.code)
	s = a.exec(&task{id: "nobody"}, false, "/bin/true")
	receive("the end of the exec", s.done)
	demand(s.err != nil && !errors.Is(s.err, io.EOF), "a task that does not exist executed something")
	w.rested(a, t)
}

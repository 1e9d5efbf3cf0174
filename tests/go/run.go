package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// check is one thing that must hold. It reports failure by panicking through the functions of demand.go.
type check struct {
	name string
	run  func(*world)
	// alone is set for a check that measures, or that looks at the whole machine: no other runs beside it.
	alone bool
}

// world is what a check works with. Each has its own folder and its own agents, so that many may run beside each other.
type world struct {
	plugin  string // the driver's binary
	socket  string // the Podman service, for the podman suite
	image   string // an image with a busybox in it, for the podman suite
	folder  string // removed at the end
	path    string // goes before the PATH of plugins
	verbose bool
	long    bool
	*shared

	agents struct {
		sync.Mutex
		all []*agent
	}
	endings struct {
		sync.Mutex
		all []func()
	}
}

// shared is what the checks of one run share.
type shared struct {
	root string // the folder of the whole run
	open *registry
	// closed asks for the user nomad.
	closed *registry
	making sync.Mutex
}

// tally counts how checks went.
type tally struct {
	sync.Mutex
	passed, failed, skipped int
}

// run runs the checks, those that must be alone in their turn, and returns the exit code.
func (w *world) run(checks []check, pattern *regexp.Regexp, atOnce int) int {
	root, err := os.MkdirTemp("/var/tmp", "conformance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w.shared = &shared{root: root}
	defer os.RemoveAll(root)
	// As an agent's data folder is: a rootless service reaches what lies below.
	if err := os.Chmod(root, 0o711); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer w.shared.end()
	var count tally
	var running sync.WaitGroup
	places := make(chan struct{}, max(atOnce, 1))
	for number, check := range checks {
		if !pattern.MatchString(check.name) {
			continue
		}
		own := w.apart(number)
		if check.alone {
			running.Wait()
			count.add(own.attempt(check))
			continue
		}
		places <- struct{}{}
		running.Go(func() {
			count.add(own.attempt(check))
			<-places
		})
	}
	running.Wait()
	fmt.Printf("%d passed, %d failed, %d skipped\n", count.passed, count.failed, count.skipped)
	if count.passed+count.failed+count.skipped == 0 {
		fmt.Fprintf(os.Stderr, "no check matches %q\n", pattern)
		return 2
	}
	return min(count.failed, 1)
}

// apart is a world for one check.
func (w *world) apart(number int) *world {
	own := &world{plugin: w.plugin, socket: w.socket, image: w.image, verbose: w.verbose, long: w.long, shared: w.shared}
	own.folder = filepath.Join(w.root, fmt.Sprint(number))
	if err := os.Mkdir(own.folder, 0o755); err != nil {
		panic(err)
	}
	return own
}

// attempt runs one check, prints how it went and returns that as its verb. What it left is cleared away in any case.
func (w *world) attempt(check check) (verb string) {
	started := time.Now()
	var failure any
	var stack []byte
	func() {
		defer func() {
			if failure = recover(); failure != nil {
				stack = debug.Stack()
			}
		}()
		check.run(w)
	}()
	logs := w.logsOfAgents()
	w.clear()
	took := time.Since(started).Milliseconds()
	switch reason := failure.(type) {
	case nil:
		fmt.Printf("ok %s  [%d ms]\n", check.name, took)
		verb = "ok"
	case skipped:
		fmt.Printf("skip %s: %s\n", check.name, reason)
		verb = "skip"
	default:
		fmt.Printf("FAIL %s: %v  [%d ms]\n%s%s", check.name, reason, took, logs, places(stack))
		return "FAIL"
	}
	if w.verbose {
		fmt.Print(logs)
	}
	return verb
}

// places are the lines of a stack that are ours, innermost first.
func places(stack []byte) string {
	var ours strings.Builder
	for _, line := range strings.Split(string(stack), "\n") {
		if strings.HasPrefix(line, "\t") && strings.Contains(line, "/go-conformance/") && !strings.Contains(line, "/run.go:") {
			fmt.Fprintln(&ours, line)
		}
	}
	return ours.String()
}

func (c *tally) add(verb string) {
	c.Lock()
	defer c.Unlock()
	switch verb {
	case "ok":
		c.passed++
	case "skip":
		c.skipped++
	default:
		c.failed++
	}
}

// atEnd has something done when the check is over, however it went; the last is done first.
func (w *world) atEnd(ending func()) {
	w.endings.Lock()
	defer w.endings.Unlock()
	w.endings.all = append(w.endings.all, ending)
}

// clear ends what the check left: its agents first, for their calls to Podman.
func (w *world) clear() {
	w.endAgents()
	w.endings.Lock()
	defer w.endings.Unlock()
	for n := len(w.endings.all) - 1; n >= 0; n-- {
		func() {
			// What cannot be cleared away does not hide how the check went.
			defer func() { _ = recover() }()
			w.endings.all[n]()
		}()
	}
	_ = os.RemoveAll(w.folder)
}

// end ends what the checks shared.
func (s *shared) end() {
	for _, registry := range []*registry{s.open, s.closed} {
		if registry != nil {
			registry.end()
		}
	}
	s.open, s.closed = nil, nil
}

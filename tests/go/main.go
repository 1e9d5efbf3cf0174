// Command conformance drives a task driver of ours with HashiCorp's own go-plugin client, exactly as a Nomad agent does.
// The messages are generated from our .proto files when it is built, so that both sides are proven at once.
//
//	conformance protocol -plugin target/debug/examples/timer
//	conformance podman   -plugin target/debug/nomad-driver-podman -socket /run/podman/podman.sock -image busybox
//	conformance encode   SCHEMA CONFIG   prints the msgpack that Nomad would send
//
// Each check prints one line; one that fails makes the exit code 1. It leaves no process, container or file behind.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

// check is one thing that must hold. It reports failure by panicking through the functions of demand.go.
type check struct {
	name string
	run  func(*world)
}

// world is what the checks of one run share.
type world struct {
	plugin string // the driver's binary
	socket string // the Podman service, for the podman suite
	image  string // an image with a busybox in it, for the podman suite
	folder string // removed at the end
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: conformance protocol|podman|podman-calls -plugin PATH ..., conformance encode SCHEMA CONFIG")
		os.Exit(2)
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	w := &world{}
	flags.StringVar(&w.plugin, "plugin", "", "the driver's binary")
	flags.StringVar(&w.socket, "socket", "", "the Podman service's socket")
	flags.StringVar(&w.image, "image", "localhost/busybox:test", "an image with a busybox in it")
	only := flags.String("only", "", "run the one check of this name")
	order := flags.String("order", "", "agent only: the file that says what to start")
	_ = flags.Parse(os.Args[2:])

	var checks []check
	switch os.Args[1] {
	case "protocol":
		checks = protocolChecks
	case "podman":
		checks = podmanChecks
	case "podman-calls":
		checks = podmanCallChecks
	case "agent":
		runAgent(w, *order)
		return
	case "encode":
		encodeFiles(flags.Args())
		return
	default:
		fmt.Fprintf(os.Stderr, "no suite %q\n", os.Args[1])
		os.Exit(2)
	}
	os.Exit(run(w, checks, *only))
}

// run runs the checks in order and returns the exit code.
func run(w *world, checks []check, only string) int {
	folder, err := os.MkdirTemp("/var/tmp", "conformance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w.folder = folder
	defer os.RemoveAll(folder)
	ran, failed := 0, 0
	for _, check := range checks {
		if only != "" && check.name != only {
			continue
		}
		ran++
		started := time.Now()
		failure := attempt(w, check)
		took := time.Since(started).Milliseconds()
		if failure != "" {
			fmt.Printf("FAILED %6d ms  %s\n%s\n", took, check.name, failure)
			failed++
			continue
		}
		fmt.Printf("ok     %6d ms  %s\n", took, check.name)
	}
	if failed > 0 {
		fmt.Printf("%d of %d checks failed\n", failed, ran)
		return 1
	}
	if ran == 0 {
		fmt.Fprintf(os.Stderr, "no check %q\n", only)
		return 2
	}
	fmt.Printf("%d checks passed\n", ran)
	return 0
}

// attempt runs one check and returns what it fails with. Agents it launched are ended in any case.
func attempt(w *world, check check) (failure string) {
	defer endAgents()
	defer func() {
		if reason := recover(); reason != nil {
			failure = fmt.Sprintf("  %v\n%s%s", reason, logsOfAgents(), debug.Stack())
		}
	}()
	check.run(w)
	return ""
}

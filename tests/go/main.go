// Command conformance drives a task driver with HashiCorp's own go-plugin client, exactly as a Nomad agent does.
// The messages are generated from our .proto files when it is built, so that both sides are proven at once.
//
//	conformance protocol -plugin target/debug/examples/timer
//	conformance podman   -plugin target/debug/nomad-driver-podman -socket /run/podman/podman.sock -image localhost/busybox:test
//	conformance bench    -plugin target/debug/nomad-driver-podman -socket /run/podman/podman.sock -image localhost/busybox:test
//	conformance encode   SCHEMA CONFIG   prints the msgpack that Nomad would send
//
// Each check prints one line, `ok NAME`, `FAIL NAME: why` or `skip NAME: reason`; one that fails makes the exit code 1. Any driver
// that calls itself podman can be given, so that two can be compared. It leaves no process, container or file behind.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: conformance protocol|podman|bench -plugin PATH ..., conformance encode SCHEMA CONFIG")
		os.Exit(2)
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	w := &world{}
	flags.StringVar(&w.plugin, "plugin", "", "the driver's binary")
	flags.StringVar(&w.socket, "socket", "", "the Podman service's socket")
	flags.StringVar(&w.image, "image", "localhost/busybox:test", "an image with a busybox in it, which the Podman service has")
	flags.BoolVar(&w.verbose, "v", false, "print what plugins logged also of checks that pass")
	flags.BoolVar(&w.long, "long", false, "bench only: the sizes that count, which take minutes, and their goals")
	chosen := flags.String("run", "", "run the checks whose name matches this regular expression")
	flags.DurationVar(&limit, "limit", limit, "how long to wait for what must come")
	atOnce := flags.Int("parallel", 4, "how many checks run at the same time, where they may")
	order := flags.String("order", "", "agent only: the file that says what to start")
	_ = flags.Parse(os.Args[2:])

	var checks []check
	switch os.Args[1] {
	case "protocol":
		checks = protocolChecks
	case "podman":
		checks = podmanSuite()
	case "bench":
		checks = append(benches, leftovers)
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
	pattern, err := regexp.Compile(*chosen)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(w.run(checks, pattern, *atOnce))
}

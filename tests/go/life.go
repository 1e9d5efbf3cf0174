package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"pannier.example/conformance/wire/base"
	"pannier.example/conformance/wire/driver"
)

// lifeChecks prove the life of a task under an agent and a plugin that come and go.
var lifeChecks = []check{
	{name: "the driver says what it is, as often as it is asked", run: podmanCards},
	{name: "the node is described at once", run: podmanFingerprint},
	{name: "a task runs to its end; code and both outputs are exact", run: podmanRun},
	{name: "a task is stopped by its own signal, and killed when it does not listen", run: podmanStop},
	{name: "a running task is watched, entered, signalled and measured", run: podmanWatch},
	{name: "what cannot start is refused, and what is gone is no error", run: podmanRefusals},
	{name: "a task survives the plugin's kill -9: same process, all logs, right exit code", run: podmanPluginKilled},
	{name: "a task that ends while no plugin is there keeps its exit code and its logs", run: podmanEndsAlone},
	{name: "a task survives an agent's kill -9: the plugin is reattached to", run: podmanAgentKilled},
	{name: "a plugin that is told to go leaves its tasks", run: podmanGraceful},
	{name: "a task that floods its output loses no byte while the plugin is killed three times", run: podmanFlood},
}

// leftovers comes last: every check before it destroyed its tasks and ended its plugins.
var leftovers = check{name: "nothing of all this is left: no process, no socket", run: podmanLeftovers, alone: true}

// podmanSuite are all checks of the driver for Podman.
func podmanSuite() []check {
	var all []check
	for _, part := range [][]check{lifeChecks, lifeRows, optionRows, networkRows, imageRows, configRows, faultChecks(), execChecks, {leftovers}} {
		all = append(all, part...)
	}
	return all
}

// counting writes numbered lines to both outputs until it is asked to end, and then exits with 42. The signal is only noted where it
// comes, between any two words of a round, so that each round is whole.
const counting = `
	asked=
	trap 'asked=yes' TERM
	i=0
	while [ -z "$asked" ]; do i=$((i+1)); echo "out $i"; echo "err $i" >&2; usleep 2000; done
	echo "end $i"
	exit 42
`

func podmanCards(w *world) {
	for range 3 {
		a := w.launch()
		info := must(a.base.PluginInfo(soon(), &base.PluginInfoRequest{}))
		equal("name", info.Name, "podman")
		equal("type", info.Type, base.PluginType_DRIVER)
		spec := must(a.base.ConfigSchema(soon(), &base.ConfigSchemaRequest{})).Spec
		// Validation: the agent says nothing of itself.
		must(a.base.SetConfig(soon(), &base.SetConfigRequest{MsgpackConfig: encode(spec, ``)}))
		_, err := a.base.SetConfig(soon(), &base.SetConfigRequest{MsgpackConfig: encode(spec, `client_http_timeout = "soon"`)})
		demand(strings.Contains(status.Convert(err).Message(), "client_http_timeout"), "a bad option is named: %v", err)
		a.end()
	}
}

func podmanFingerprint(w *world) {
	a := w.launchPodman()
	stream := must(a.driver.Fingerprint(soon(), &driver.FingerprintRequest{}))
	first := must(stream.Recv())
	equal("health", first.Health, driver.FingerprintResponse_HEALTHY)
	demand(first.Attributes["driver.podman.version"].GetStringVal() != "", "Podman's version: %v", first)
	capabilities := must(a.driver.Capabilities(soon(), &driver.CapabilitiesRequest{})).Capabilities
	demand(capabilities.Exec && capabilities.SendSignals, "it can: %v", capabilities)
	equal("files", capabilities.FsIsolation, driver.DriverCapabilities_IMAGE)
	a.end()
}

func podmanRun(w *world) {
	a := w.launchPodman()
	t, handle := w.start(a, `printf 'one\n\ntwo'; printf 'problem\n' >&2; echo data > /alloc/data/file; exit 3`, "")
	demand(handle.Version >= 1 && len(handle.DriverState) > 0, "a handle to recover by")
	result := receive("the task's end", a.waiting(t.id))
	equal("exit code", result.ExitCode, 3)
	equal("signal", result.Signal, 0)
	inspected := must(a.driver.InspectTask(soon(), &driver.InspectTaskRequest{TaskId: t.id})).Task
	equal("state", inspected.State, driver.TaskState_EXITED)
	demand(!inspected.CompletedAt.AsTime().Before(inspected.StartedAt.AsTime()), "times: %v", inspected)
	equal("data", string(must(os.ReadFile(filepath.Join(t.folder, "alloc/data/file")))), "data\n")
	// The result stays until the task is destroyed.
	equal("exit code", receive("the task's end", a.waiting(t.id)).ExitCode, 3)
	w.destroy(a, t)
	equal("stdout", t.logs.stdout.finished(), "one\n\ntwo")
	equal("stderr", t.logs.stderr.finished(), "problem\n")
	a.end()
}

func podmanWatch(w *world) {
	a := w.launchPodman()
	events := must(a.driver.TaskEvents(soon(), &driver.TaskEventsRequest{}))
	_ = must(events.Header())
	t, _ := w.start(a, `trap 'echo signalled' USR1; echo up; while :; do usleep 10000; done`, "")
	eventually("its first output", func() bool { return t.logs.stdout.text() == "up\n" })
	inspected := must(a.driver.InspectTask(soon(), &driver.InspectTaskRequest{TaskId: t.id})).Task
	equal("state", inspected.State, driver.TaskState_RUNNING)
	demand(inspected.CompletedAt != nil && inspected.Result != nil, "nothing Nomad reads is absent: %v", inspected)

	stats := must(a.driver.TaskStats(soon(), &driver.TaskStatsRequest{TaskId: t.id, CollectionInterval: durationpb.New(50 * time.Millisecond)}))
	for range 2 {
		sample := must(stats.Recv()).Stats
		demand(sample.Timestamp != nil && sample.AggResourceUsage.Memory.Usage > 0, "a sample is whole: %v", sample)
	}
	ran := must(a.driver.ExecTask(soon(), &driver.ExecTaskRequest{TaskId: t.id, Command: []string{"/bin/sh", "-c", "echo in; echo bad >&2; exit 5"}}))
	equal("exec", fmt.Sprintf("%s%s%d", ran.Stdout, ran.Stderr, ran.Result.ExitCode), "in\nbad\n5")
	podmanCat(a, t)

	must(a.driver.SignalTask(soon(), &driver.SignalTaskRequest{TaskId: t.id, Signal: "SIGUSR1"}))
	eventually("the signal arrives", func() bool { return t.logs.stdout.text() == "up\nsignalled\n" })
	_, err := a.driver.SignalTask(soon(), &driver.SignalTaskRequest{TaskId: t.id, Signal: "SIGNONSENSE"})
	demand(err != nil, "a signal that does not exist is an error")
	wait := a.waiting(t.id)
	a.stop(t, "SIGKILL", 1)
	receive("the task's end", wait)
	for {
		if _, err := stats.Recv(); err != nil {
			demand(errors.Is(err, io.EOF), "statistics end with the task: %v", err)
			break
		}
	}
	w.destroy(a, t)
	a.end()
}

// podmanCat runs cat in the task and sends it more than any buffer between holds, with the end of its input.
func podmanCat(a *agent, t *task) {
	stream := must(a.driver.ExecTaskStreaming(soon()))
	setup := &driver.ExecTaskStreamingRequest_Setup{TaskId: t.id, Command: []string{"/bin/cat"}}
	demand(stream.Send(&driver.ExecTaskStreamingRequest{Setup: setup}) == nil, "cannot send")
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	go func() {
		for piece := sent; len(piece) > 0; piece = piece[32<<10:] {
			operation := &driver.ExecTaskStreamingIOOperation{Data: piece[:32<<10]}
			_ = stream.Send(&driver.ExecTaskStreamingRequest{Stdin: operation})
		}
		_ = stream.Send(&driver.ExecTaskStreamingRequest{Stdin: &driver.ExecTaskStreamingIOOperation{Close: true}})
	}()
	var got bytes.Buffer
	for {
		response := must(stream.Recv())
		got.Write(response.GetStdout().GetData())
		if response.Exited {
			equal("exit code", response.Result.ExitCode, 0)
			break
		}
	}
	demand(bytes.Equal(got.Bytes(), sent), "cat returned %d bytes of %d", got.Len(), len(sent))
}

func podmanStop(w *world) {
	a := w.launchPodman()
	polite, _ := w.start(a, `trap 'exit 9' INT; echo up; while :; do usleep 10000; done`, "")
	deaf, _ := w.start(a, `trap '' TERM; echo up; while :; do usleep 10000; done`, "")
	for _, t := range []*task{polite, deaf} {
		eventually("it is up", func() bool { return t.logs.stdout.text() == "up\n" })
	}
	wait := a.waiting(polite.id)
	a.stop(polite, "SIGINT", 20)
	equal("exit code", receive("its end", wait).ExitCode, 9)

	started := time.Now()
	wait = a.waiting(deaf.id)
	must(a.driver.StopTask(soon(), &driver.StopTaskRequest{TaskId: deaf.id, Timeout: durationpb.New(300 * time.Millisecond)}))
	result := receive("its end", wait)
	equal("exit code", result.ExitCode, 137)
	equal("signal", result.Signal, 9)
	took := time.Since(started)
	demand(took >= 300*time.Millisecond, "its 300 ms were kept: %v", took)
	for _, t := range []*task{polite, deaf} {
		a.stop(t, "SIGTERM", 1)
		w.destroy(a, t)
		a.stop(t, "SIGTERM", 1)
	}
	a.end()
}

func podmanRefusals(w *world) {
	a := w.launchPodman()
	t := w.order(a, order{image: "localhost/absent:1"})
	_, err := a.driver.StartTask(soon(), t.request)
	contains("the error", status.Convert(err).Message(), "localhost/absent:1")
	demand(!recoverable(err), "an image that does not exist is no reason to try again")
	demand(!strings.Contains(w.containers(), t.container()), "a failed start leaves no container")
	for range 2 {
		a.stop(t, "", 1)
		w.destroy(a, t)
	}
	spec := must(a.driver.TaskConfigSchema(soon(), &driver.TaskConfigSchemaRequest{})).Spec
	_, err = tryEncode(spec, `image = ["a"]`)
	demand(err != nil, "an option of the wrong type is refused by the schema")
	a.end()
}

func podmanPluginKilled(w *world) {
	a := w.launchPodman()
	t, handle := w.start(a, counting, "")
	eventually("some lines", func() bool { return strings.Contains(t.logs.stdout.text(), "out 20\n") })
	pid := t.pid()
	a.killPlugin()
	before := strings.Count(t.logs.stdout.text(), "\n")
	eventually("lines while no plugin is there", func() bool { return strings.Count(t.logs.stdout.text(), "\n") > before+20 })

	b := w.launchPodman()
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	equal("pid", t.pid(), pid)
	podmanFinishCounting(w, b, t)
	b.end()
}

// podmanFinishCounting ends a counting task and demands that its exit code is right and that no line is lost, doubled or torn.
func podmanFinishCounting(w *world, a *agent, t *task) {
	finishCounting(w, a, t, 0)
}

// finishCounting is podmanFinishCounting after as many kills of the log process, of which each may bring what it was about to note
// once more.
func finishCounting(w *world, a *agent, t *task, kills int) {
	before := strings.Count(t.logs.stdout.text(), "\n")
	eventually("more lines", func() bool { return strings.Count(t.logs.stdout.text(), "\n") > before+20 })
	wait := a.waiting(t.id)
	a.stop(t, "SIGTERM", 20)
	equal("exit code", receive("its end", wait).ExitCode, 42)
	w.destroy(a, t)
	completeAfter(t, kills)
}

// complete demands that both outputs are 1, 2, 3 and so on, and that the last one says so. Of a task that ran more than once, the
// last run counts.
func complete(t *task) {
	completeAfter(t, 0)
}

// completeAfter is complete, but as often as the log process was killed each output may go on at an earlier line.
func completeAfter(t *task, kills int) {
	stdout, end, found := strings.Cut(lastRun(t.logs.stdout.finished(), "out 1\n"), "end ")
	demand(found, "stdout lacks its last line")
	last := counted("stdout", stdout, "out ", kills)
	equal("the last line of stdout", end, fmt.Sprintln(last))
	equal("lines of stderr", counted("stderr", lastRun(t.logs.stderr.finished(), "err 1\n"), "err ", kills), last)
}

// counted demands that lines are 1, 2, 3 and so on but for so many returns to an earlier one, and gives the last number.
func counted(name, text, prefix string, returns int) int {
	last := 0
	for line := range strings.Lines(text) {
		number, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), prefix))
		if err == nil && 0 < number && number <= last && returns > 0 {
			returns--
			last = number - 1
		}
		equal("a line of "+name, line, fmt.Sprint(prefix, last+1, "\n"))
		last++
	}
	return last
}

// lastRun is what the last run wrote, which begins with a line of its own.
func lastRun(text, begin string) string {
	return text[max(strings.LastIndex("\n"+text, "\n"+begin), 0):]
}

func podmanEndsAlone(w *world) {
	a := w.launchPodman()
	t, handle := w.start(a, `echo before; while [ ! -e /alloc/data/go ]; do usleep 10000; done; echo after; exit 7`, "")
	eventually("its first line", func() bool { return t.logs.stdout.text() == "before\n" })
	pid := t.pid()
	a.killPlugin()
	demand(os.WriteFile(filepath.Join(t.folder, "alloc/data/go"), nil, 0o666) == nil, "cannot write")
	eventually("it ends", func() bool { return !runs(pid) })

	b := w.launchPodman()
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	result := receive("its end", b.waiting(t.id))
	equal("exit code", result.ExitCode, 7)
	w.destroy(b, t)
	equal("stdout", t.logs.stdout.finished(), "before\nafter\n")
	b.end()
}

func podmanAgentKilled(w *world) {
	// The task is prepared with a plugin that is then ended, for its schema; the agent that will be killed is a process of its own.
	a := w.launchPodman()
	t := w.prepare(a, counting, "")
	a.end()
	where, handle := w.crashAgent(t.request)
	eventually("some lines", func() bool { return strings.Contains(t.logs.stdout.text(), "out 20\n") })
	pid := t.pid()

	b := w.reattach(where)
	// On reattaching an agent sends no configuration; it asks who the plugin is, and goes on.
	equal("name", must(b.base.PluginInfo(soon(), &base.PluginInfoRequest{})).Name, "podman")
	b.init()
	must(must(b.driver.Fingerprint(soon(), &driver.FingerprintRequest{})).Recv())
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	equal("pid", t.pid(), pid)
	podmanFinishCounting(w, b, t)
	b.end()
}

func podmanGraceful(w *world) {
	a := w.launchPodman()
	t, handle := w.start(a, counting, "")
	eventually("some lines", func() bool { return strings.Contains(t.logs.stdout.text(), "out 20\n") })
	pid := t.pid()
	wait := a.waiting(t.id)
	a.end()
	select {
	case result := <-wait:
		demand(false, "the wait says that the task ended: %v", result)
	default:
	}
	b := w.launchPodman()
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	equal("pid", t.pid(), pid)
	podmanFinishCounting(w, b, t)
	b.end()
}

// podmanFlood writes as fast as a shell can, far more than all buffers hold, so that each kill falls into a write.
func podmanFlood(w *world) {
	const rounds, lines = 60, 20000
	a := w.launchPodman()
	t, handle := w.start(a, fmt.Sprintf(`i=0; while [ $i -lt %d ]; do seq 1 %d; i=$((i+1)); done; exit 11`, rounds, lines), "")
	for n := range 3 {
		eventually("more output", func() bool { return len(t.logs.stdout.text()) > (n+1)<<18 })
		a.killPlugin()
		a = w.launchPodman()
		must(a.driver.RecoverTask(soon(), afterRestart(handle)))
	}
	equal("exit code", receive("its end", a.waiting(t.id)).ExitCode, 11)
	w.destroy(a, t)
	var round strings.Builder
	for n := range lines {
		fmt.Fprintln(&round, n+1)
	}
	got := t.logs.stdout.finished()
	equal("bytes", len(got), rounds*round.Len())
	demand(got == strings.Repeat(round.String(), rounds), "the bytes are not those that were written")
	a.end()
}

func podmanLeftovers(w *world) {
	w.shared.end()
	eventually("no process is left: "+w.processes(), func() bool { return w.processes() == "" })
	sockets, _ := filepath.Glob(filepath.Join(w.root, "*/plugin-*"))
	equal("sockets", len(sockets), 0)
}

// processes are those whose command line names the run's folder.
func (w *world) processes() string {
	var left strings.Builder
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, entry := range entries {
		line, _ := os.ReadFile(entry)
		if strings.Contains(string(line), w.root) {
			fmt.Fprintln(&left, entry, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return left.String()
}

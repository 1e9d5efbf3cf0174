package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"google.golang.org/grpc/status"

	"pannier.example/conformance/wire/driver"
)

// The moments of a start, a stop and a removal at which something is killed.
var (
	startMoments = []moment{
		{name: "before the create", method: "POST", path: regexp.MustCompile(`/containers/create$`)},
		{name: "after the create", method: "POST", path: regexp.MustCompile(`/containers/create$`), after: true},
		{name: "before the start", method: "POST", path: regexp.MustCompile(`/containers/[^/]+/start$`)},
		{name: "after the start", method: "POST", path: regexp.MustCompile(`/containers/[^/]+/start$`), after: true},
	}
	stopMoments = []moment{
		{name: "before the signal", method: "POST", path: regexp.MustCompile(`/containers/[^/]+/(kill|stop)$`)},
		{name: "after the signal", method: "POST", path: regexp.MustCompile(`/containers/[^/]+/(kill|stop)$`), after: true},
	}
	removeMoments = []moment{
		{name: "before the removal", method: "DELETE", path: regexp.MustCompile(`/containers/`)},
		{name: "after the removal", method: "DELETE", path: regexp.MustCompile(`/containers/`), after: true},
	}
)

// faultChecks kill what can be killed, at each moment, and look at what Nomad and the task's user see afterwards.
func faultChecks() []check {
	var all []check
	add := func(name string, moments []moment, run func(*world, moment)) {
		for _, m := range moments {
			all = append(all, check{name: name + ", " + m.name, run: func(w *world) { run(w, m) }})
		}
	}
	add("StartTask, the plugin is killed: one container after the retry", startMoments, startPluginKilled)
	add("StartTask, the Podman service is killed: one container after the retry", startMoments, startServiceKilled)
	add("StopTask, the plugin is killed: the right exit code", stopMoments, stopPluginKilled)
	add("StopTask, the Podman service is killed: the right exit code", stopMoments, stopServiceKilled)
	add("DestroyTask, the plugin is killed: nothing is left", removeMoments, removePluginKilled)
	return append(all,
		check{name: "the log process is killed: no byte is lost, the task runs on", run: relayKilled},
		check{name: "the log process and the plugin are killed at once: no byte is lost", run: relayAndPluginKilled},
		check{name: "the Podman service is killed: the task runs on, nothing is lost", run: serviceKilled},
		check{name: "a task ends while Podman is down: its code comes with Podman", run: endsWithoutService},
		check{name: "Podman is down: the driver is unhealthy, a start may be tried again, a stop ends well", run: serviceDown},
		check{name: "the same task is started again: one container", run: startTwice},
		check{name: "a container of somebody else with the task's name stays", run: foreignContainer},
	)
}

// containersOf counts a task's containers.
func (w *world) containersOf(t *task) int {
	return strings.Count(w.containers(), `"Names":["`+t.container()+`"]`)
}

// whole demands that a task that counted has run as one container all along and ends as it should.
func (w *world) whole(a *agent, t *task) {
	w.wholeAfter(a, t, 0)
}

// wholeAfter is whole after as many kills of the log process.
func (w *world) wholeAfter(a *agent, t *task, kills int) {
	equal("containers", w.containersOf(t), 1)
	finishCounting(w, a, t, kills)
}

func startPluginKilled(w *world, m moment) {
	p := w.proxyTo(w.socket)
	a := w.launch()
	demand(a.configure(p.socket, "") == nil, "the plugin's options are refused")
	t := w.prepare(a, counting, "")
	p.at(m, func() { _ = syscall.Kill(a.pid(), syscall.SIGKILL) })
	_, err := a.driver.StartTask(soon(), t.request)
	demand(err != nil, "the start goes well though its plugin died")
	eventually("the client sees the plugin's end", a.client.Exited)
	// What Nomad does: the same once more, with a new plugin.
	b := w.launchPodman()
	must(b.driver.StartTask(soon(), t.request))
	t.pid()
	equal("runs of the task", len(t.pids()), 1)
	w.whole(b, t)
	b.end()
}

func startServiceKilled(w *world, m moment) {
	s := w.ownService()
	p := w.proxyTo(s.socket)
	a := w.launch()
	demand(a.configure(p.socket, "") == nil, "the plugin's options are refused")
	t := w.prepare(a, counting, "")
	p.at(m, s.kill)
	_, err := a.driver.StartTask(soon(), t.request)
	if err == nil {
		// The driver found out by itself that the container runs.
		s.start()
		w.whole(a, t)
		return
	}
	demand(recoverable(err), "a Podman that died is a reason to try again: %v", err)
	s.start()
	// Nomad restarts the task under another id, and first sees to it that its logs are read.
	t.logs.again()
	t.id += "-again"
	t.request.Task.Id = t.id
	must(a.driver.StartTask(soon(), t.request))
	t.pid()
	equal("runs of the task", len(t.pids()), 1)
	w.whole(a, t)
	a.end()
}

func stopPluginKilled(w *world, m moment) {
	p := w.proxyTo(w.socket)
	a := w.launch()
	demand(a.configure(p.socket, "") == nil, "the plugin's options are refused")
	t, handle := w.start(a, counting, "")
	eventually("some lines", func() bool { return strings.Contains(t.logs.stdout.text(), "out 5\n") })
	p.at(m, func() { _ = syscall.Kill(a.pid(), syscall.SIGKILL) })
	_, err := a.driver.StopTask(soon(), &driver.StopTaskRequest{TaskId: t.id, Signal: "SIGTERM", Timeout: duration(limit)})
	demand(err != nil, "the stop goes well though its plugin died")
	eventually("the client sees the plugin's end", a.client.Exited)
	b := w.launchPodman()
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	wait := b.waiting(t.id)
	b.stop(t, "SIGTERM", 60)
	equal("exit code", receive("its end", wait).ExitCode, 42)
	w.destroy(b, t)
	complete(t)
}

func stopServiceKilled(w *world, m moment) {
	s := w.ownService()
	p := w.proxyTo(s.socket)
	a := w.launch()
	demand(a.configure(p.socket, "") == nil, "the plugin's options are refused")
	t, _ := w.start(a, counting, "")
	eventually("some lines", func() bool { return strings.Contains(t.logs.stdout.text(), "out 5\n") })
	wait := a.waiting(t.id)
	p.at(m, func() {
		s.kill()
		go s.start()
	})
	// Nomad tries a stop five times.
	eventually("a stop goes well", func() bool {
		_, err := a.driver.StopTask(soon(), &driver.StopTaskRequest{TaskId: t.id, Signal: "SIGTERM", Timeout: duration(limit)})
		return err == nil
	})
	equal("exit code", receive("its end", wait).ExitCode, 42)
	w.destroy(a, t)
	complete(t)
	a.end()
}

func removePluginKilled(w *world, m moment) {
	p := w.proxyTo(w.socket)
	a := w.launch()
	demand(a.configure(p.socket, "") == nil, "the plugin's options are refused")
	t, handle := w.start(a, "exit 3", "")
	equal("exit code", receive("its end", a.waiting(t.id)).ExitCode, 3)
	p.at(m, func() { _ = syscall.Kill(a.pid(), syscall.SIGKILL) })
	_, err := a.driver.DestroyTask(soon(), &driver.DestroyTaskRequest{TaskId: t.id, Force: true})
	demand(err != nil, "the removal goes well though its plugin died")
	eventually("the client sees the plugin's end", a.client.Exited)
	b := w.launchPodman()
	_, err = b.driver.RecoverTask(soon(), afterRestart(handle))
	demand((err == nil) == (w.containersOf(t) == 1), "recovered without a container, or not with one: %v", err)
	w.destroy(b, t)
}

// relay is the process that carries the task's output, found by the directory in its command line.
func (t *task) relay() int {
	found := 0
	eventually("the log process is there", func() bool {
		entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, entry := range entries {
			line, _ := os.ReadFile(entry)
			if strings.Contains(string(line), "log-relay\x00"+t.folder) {
				found, _ = strconv.Atoi(filepath.Base(filepath.Dir(entry)))
			}
		}
		return found != 0 && runs(found)
	})
	return found
}

// ours skips what is about a process that another driver does not have.
func (w *world) ours() {
	if !strings.Contains(string(must(os.ReadFile(w.plugin))), "log-relay") {
		skip("this driver has no log process")
	}
}

func relayKilled(w *world) {
	w.ours()
	a := w.launchPodman()
	t, _ := w.start(a, counting, "")
	const kills = 3
	for n := range kills {
		seen := strings.Count(t.logs.stdout.text(), "\n")
		eventually("more lines", func() bool { return strings.Count(t.logs.stdout.text(), "\n") > seen+20*(n+1) })
		relay := t.relay()
		demand(syscall.Kill(relay, syscall.SIGKILL) == nil, "cannot kill %d", relay)
		eventually("it ends", func() bool { return !runs(relay) })
	}
	w.wholeAfter(a, t, kills)
	a.end()
}

func relayAndPluginKilled(w *world) {
	w.ours()
	a := w.launchPodman()
	t, handle := w.start(a, counting, "")
	eventually("some lines", func() bool { return strings.Contains(t.logs.stdout.text(), "out 20\n") })
	relay := t.relay()
	// The plugin first: its log process may still write a line into a pipe that nobody else holds.
	a.killPlugin()
	demand(syscall.Kill(relay, syscall.SIGKILL) == nil, "cannot kill %d", relay)
	// The reader saw the end of the pipe, as Nomad's does; Nomad makes a new one when its agent starts anew.
	t.logs.again()
	b := w.launchPodman()
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	w.wholeAfter(b, t, 1)
	b.end()
}

func serviceKilled(w *world) {
	s := w.ownService()
	a := w.launch()
	demand(a.configure(s.socket, "") == nil, "the plugin's options are refused")
	t, _ := w.start(a, counting, "")
	eventually("some lines", func() bool { return strings.Contains(t.logs.stdout.text(), "out 20\n") })
	pid := t.pid()
	wait := a.waiting(t.id)
	s.kill()
	before := strings.Count(t.logs.stdout.text(), "\n")
	eventually("lines while Podman is down", func() bool { return strings.Count(t.logs.stdout.text(), "\n") > before+50 })
	still("while Podman is down", wait)
	s.start()
	equal("pid", t.pid(), pid)
	w.whole(a, t)
	equal("exit code of the earlier wait", receive("its end", wait).ExitCode, 42)
	a.end()
}

func endsWithoutService(w *world) {
	s := w.ownService()
	a := w.launch()
	demand(a.configure(s.socket, "") == nil, "the plugin's options are refused")
	t, _ := w.start(a, `echo before; while [ ! -e /alloc/data/go ]; do usleep 10000; done; echo after; exit 7`, "")
	eventually("its first line", func() bool { return t.logs.stdout.text() == "before\n" })
	pid := t.pid()
	wait := a.waiting(t.id)
	s.kill()
	demand(os.WriteFile(t.folder+"/alloc/data/go", nil, 0o666) == nil, "cannot write")
	eventually("it ends", func() bool { return !runs(pid) })
	still("as nobody can say its code", wait)
	s.start()
	equal("exit code", receive("its end", wait).ExitCode, 7)
	w.destroy(a, t)
	equal("stdout", t.logs.stdout.finished(), "before\nafter\n")
	a.end()
}

func serviceDown(w *world) {
	s := w.ownService()
	a := w.launch()
	demand(a.configure(s.socket, "") == nil, "the plugin's options are refused")
	stream := must(a.driver.Fingerprint(soon(), &driver.FingerprintRequest{}))
	equal("health", must(stream.Recv()).Health, driver.FingerprintResponse_HEALTHY)
	t, _ := w.start(a, counting, "")
	eventually("some lines", func() bool { return strings.Contains(t.logs.stdout.text(), "out 5\n") })
	other := w.prepare(a, "true", "")
	s.kill()
	_, err := a.driver.StartTask(soon(), other.request)
	demand(err != nil && recoverable(err), "a start without Podman: %v", err)
	contains("the error", status.Convert(err).Message(), s.socket)
	b := w.launch()
	demand(b.configure(s.socket, "") == nil, "the plugin's options are refused")
	equal("health of a new plugin", must(must(b.driver.Fingerprint(soon(), &driver.FingerprintRequest{})).Recv()).Health,
		driver.FingerprintResponse_UNDETECTED)
	s.start()
	must(a.driver.StartTask(soon(), other.request))
	receive("its end", a.waiting(other.id))
	w.destroy(a, other)
	w.whole(a, t)
	a.end()
}

func startTwice(w *world) {
	a := w.launchPodman()
	t, handle := w.start(a, counting, "")
	again := must(a.driver.StartTask(soon(), t.request))
	equal("driver state", string(again.Handle.DriverState), string(handle.DriverState))
	t.pid()
	equal("runs of the task", len(t.pids()), 1)
	w.whole(a, t)
	a.end()
}

func foreignContainer(w *world) {
	a := w.launchPodman()
	t := w.prepare(a, "true", "")
	w.tell("POST", "containers/create", map[string]any{
		"name": t.container(), "image": w.image, "command": []string{"/bin/true"}, "r_limits": limits,
	})
	before := w.inspect(t).text("Id")
	_, err := a.driver.StartTask(soon(), t.request)
	demand(err != nil, "it starts in the place of another")
	contains("the error", status.Convert(err).Message(), t.container())
	equal("the other", w.inspect(t).text("Id"), before)
	fmt.Fprintln(a.log, "refused:", err)
}

package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"pannier.example/conformance/wire/base"
	"pannier.example/conformance/wire/driver"
)

// lifeRows are the rows about start, end, recovery and removal. The names are those of the driver that users come from, so that
// both can be asked the same.
var lifeRows = []check{
	{name: "PingPodman (the version is told; a silent socket is undetected)", run: rowPing},
	{name: "Start_NoImage (error: image name required)", run: func(w *world) {
		w.refused(w.launchPodman(), order{options: `image = ""`}, "image name required")
	}},
	{name: "Start_Wait (the wait blocks while the task runs)", run: rowWait},
	{name: "Start_WaitFinish (exit 0 and a result)", run: rowWaitFinish},
	{name: "Start_StoppedContainer (a stale container of the name is replaced)", run: rowStale},
	{name: "Start_Wait_AllocDir (a file in $NOMAD_ALLOC_DIR reaches the host)", run: rowAllocDir},
	{name: "RecoverTask, the same plugin (goes on)", run: rowRecoverSame},
	{name: "RecoverTask, a fresh plugin (same process)", run: rowRecoverFresh},
	{name: "RecoverTask, a stopped container (its exit code is told)", run: rowRecoverStopped},
	{name: "RecoverTask, a container that is gone (error)", run: rowRecoverGone},
	{name: "RecoverTask, recover_stopped (runs again)", run: rowRecoverStoppedAgain},
	{name: "GC_Container_on (removed)", run: func(w *world) { rowGC(w, true) }},
	{name: "GC_Container_off (kept)", run: func(w *world) { rowGC(w, false) }},
	{name: "logNomad (each stream byte-exact)", run: func(w *world) { rowLogs(w, "logging {\n driver = \"nomad\"\n}") }},
	{name: "logNomadDefault (the same when nothing is said)", run: func(w *world) { rowLogs(w, "") }},
	{name: "logJournald (the journal has the task's output)", run: rowJournald},
	{name: "LogFifoAccessible (FIFOs keep owner and mode, for a task of any user)", run: rowFifo},
	{name: "disable_log_collection (nothing is collected, the task runs)", run: rowNoLogs},
	{name: "SignalTask (the task traps it)", run: rowSignal},
	{name: "ExecTask (both outputs, exit code, deadline)", run: rowExec},
}

// forever is a script that runs until it is killed, by the shell itself and not by what it executes.
const forever = "sleep 3600; :"

func rowPing(w *world) {
	a := w.launchPodman()
	first := must(must(a.driver.Fingerprint(soon(), &driver.FingerprintRequest{})).Recv())
	equal("health", first.Health, driver.FingerprintResponse_HEALTHY)
	var info tree
	w.read("info", &info)
	equal("version", first.Attributes["driver.podman.version"].GetStringVal(), info.text("version", "Version"))
	equal("driver.podman", first.Attributes["driver.podman"].GetBoolVal(), true)

	silent := w.launch()
	demand(silent.configure(w.folder+"/nobody.sock", "") == nil, "a socket that is not there yet is no wrong option")
	first = must(must(silent.driver.Fingerprint(soon(), &driver.FingerprintRequest{})).Recv())
	equal("health", first.Health, driver.FingerprintResponse_UNDETECTED)
}

// still demands that a task goes on, which it is given a moment to disprove.
func still(what string, wait chan *driver.ExitResult) {
	select {
	case result := <-wait:
		demand(false, "%s: the task ended: %v", what, result)
	case <-time.After(300 * time.Millisecond):
	}
}

func rowWait(w *world) {
	a := w.launchPodman()
	t, _ := w.start(a, forever, "")
	wait := a.waiting(t.id)
	still("while it sleeps", wait)
	a.stop(t, "SIGKILL", 1)
	equal("exit code", receive("its end", wait).ExitCode, 137)
	w.destroy(a, t)
}

func rowWaitFinish(w *world) {
	a := w.launchPodman()
	t, _ := w.start(a, "true", "")
	result := receive("its end", a.waiting(t.id))
	equal("exit code", result.ExitCode, 0)
	equal("signal", result.Signal, 0)
	demand(!result.OomKilled, "it had memory")
	w.destroy(a, t)
}

func rowStale(w *world) {
	a := w.launchPodman()
	t := w.prepare(a, `echo fresh > /alloc/data/out`, "")
	stale := map[string]any{
		"name": t.container(), "image": w.image, "command": []string{"/bin/sh", "-c", "exit 9"},
		"env": map[string]string{"NOMAD_ALLOC_ID": t.alloc}, "netns": map[string]string{"nsmode": "host"},
		"r_limits": limits,
	}
	w.tell("POST", "containers/create", stale)
	w.tell("POST", "containers/"+t.container()+"/start", nil)
	eventually("the stale container ends", func() bool { return w.inspect(t).text("State", "Status") == "exited" })
	must(a.driver.StartTask(soon(), t.request))
	equal("exit code", receive("its end", a.waiting(t.id)).ExitCode, 0)
	equal("output", t.data("out"), "fresh\n")
	equal("containers of the name", strings.Count(w.containers(), t.container()), 1)
	w.destroy(a, t)
}

func rowAllocDir(w *world) {
	a := w.launchPodman()
	t, _ := w.start(a, `echo -n data > $NOMAD_ALLOC_DIR/data/file; echo -n x > $NOMAD_TASK_DIR/f; echo -n y > $NOMAD_SECRETS_DIR/f`, "")
	equal("exit code", receive("its end", a.waiting(t.id)).ExitCode, 0)
	equal("file", t.data("file"), "data")
	equal("local", string(must(os.ReadFile(t.own("local/f")))), "x")
	equal("secrets", string(must(os.ReadFile(t.own("secrets/f")))), "y")
	w.destroy(a, t)
}

func rowRecoverSame(w *world) {
	a := w.launchPodman()
	t, handle := w.start(a, forever, "")
	pid := t.pid()
	must(a.driver.RecoverTask(soon(), afterRestart(handle)))
	equal("pid", t.pid(), pid)
	rowRecovered(w, a, t)
}

func rowRecoverFresh(w *world) {
	a := w.launchPodman()
	t, handle := w.start(a, forever, "")
	pid := t.pid()
	a.end()
	b := w.launchPodman()
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	equal("pid", t.pid(), pid)
	rowRecovered(w, b, t)
}

// rowRecovered demands that a recovered task runs and can be ended.
func rowRecovered(w *world, a *agent, t *task) {
	wait := a.waiting(t.id)
	still("after its recovery", wait)
	a.stop(t, "SIGKILL", 1)
	equal("exit code", receive("its end", wait).ExitCode, 137)
	w.destroy(a, t)
}

// leaveStopped starts a task that ends by itself with 5 once the plugin has gone, and returns when it has.
func leaveStopped(w *world, options string) (*task, *driver.TaskHandle) {
	a := w.launchWith(options)
	t, handle := w.start(a, `echo run >> /alloc/data/runs; [ -e /alloc/data/again ] && exec sleep 3600
		while [ ! -e /alloc/data/go ]; do usleep 10000; done; exit 5`, "")
	pid := t.pid()
	a.end()
	demand(os.WriteFile(t.folder+"/alloc/data/go", nil, 0o666) == nil, "cannot write")
	eventually("it ends", func() bool { return !runs(pid) && w.inspect(t).text("State", "Status") == "exited" })
	return t, handle
}

func rowRecoverStopped(w *world) {
	t, handle := leaveStopped(w, "")
	b := w.launchPodman()
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	equal("exit code", receive("its end", b.waiting(t.id)).ExitCode, 5)
	equal("runs", t.data("runs"), "run\n")
	w.destroy(b, t)
}

func rowRecoverGone(w *world) {
	a := w.launchPodman()
	t, handle := w.start(a, forever, "")
	a.end()
	w.removeContainer(t.container())
	b := w.launchPodman()
	_, err := b.driver.RecoverTask(soon(), afterRestart(handle))
	demand(err != nil, "a container that is gone is recovered")
	// What Nomad does next.
	w.destroy(b, t)
}

func rowRecoverStoppedAgain(w *world) {
	t, handle := leaveStopped(w, "recover_stopped = true")
	demand(os.WriteFile(t.folder+"/alloc/data/again", nil, 0o666) == nil, "cannot write")
	b := w.launchWith("recover_stopped = true")
	must(b.driver.RecoverTask(soon(), afterRestart(handle)))
	eventually("it runs again", func() bool { return t.data("runs") == "run\nrun\n" })
	rowRecovered(w, b, t)
}

func rowGC(w *world, on bool) {
	a := w.launchWith(fmt.Sprintf("gc { \n container = %v \n }", on))
	t, _ := w.start(a, "true", "")
	receive("its end", a.waiting(t.id))
	must(a.driver.DestroyTask(soon(), &driver.DestroyTaskRequest{TaskId: t.id, Force: true}))
	code, _ := w.ask("GET", "containers/"+t.container()+"/exists", nil)
	equal("the container is gone", code == http.StatusNotFound, on)
}

func rowLogs(w *world, options string) {
	a := w.launchPodman()
	t, _ := w.start(a, `printf 'to out\n\n'; printf 'to err' >&2`, options)
	receive("its end", a.waiting(t.id))
	w.destroy(a, t)
	equal("stdout", t.logs.stdout.finished(), "to out\n\n")
	equal("stderr", t.logs.stderr.finished(), "to err")
}

func rowJournald(w *world) {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/systemd/journal/socket", w.servicePid())); err != nil {
		skip("no journald where Podman runs")
	}
	a := w.launchPodman()
	t, _ := w.start(a, `echo "to the journal"`, "logging {\n driver = \"journald\"\n options = [{ tag = \"conformance\" }]\n}")
	receive("its end", a.waiting(t.id))
	w.destroy(a, t)
	contains("stdout", t.logs.stdout.finished(), "to the journal\n")
}

func rowFifo(w *world) {
	a := w.launchPodman()
	t, _ := w.begin(a, order{script: "echo seen; echo seen >&2", change: func(c *driver.TaskConfig) { c.User = "nobody" }})
	receive("its end", a.waiting(t.id))
	for _, log := range []*pipeLog{t.logs.stdout, t.logs.stderr} {
		state := must(os.Stat(log.path))
		equal("mode", state.Mode().Perm(), 0o600)
		equal("owner", state.Sys().(*syscall.Stat_t).Uid, 0)
	}
	w.destroy(a, t)
	contains("stdout", t.logs.stdout.finished(), "seen\n")
}

func rowNoLogs(w *world) {
	a := w.launchWith("disable_log_collection = true")
	t, _ := w.start(a, "echo nowhere; echo out > /alloc/data/out", "")
	equal("exit code", receive("its end", a.waiting(t.id)).ExitCode, 0)
	equal("output", t.data("out"), "out\n")
	equal("stdout", t.logs.stdout.text(), "")
	w.destroy(a, t)
}

func rowSignal(w *world) {
	a := w.launchPodman()
	t, _ := w.start(a, `trap 'echo sighup; exit 4' HUP; echo up > /alloc/data/out; while :; do usleep 10000; done`, "")
	eventually("it is up", func() bool { return t.data("out") == "up\n" })
	wait := a.waiting(t.id)
	must(a.driver.SignalTask(soon(), &driver.SignalTaskRequest{TaskId: t.id, Signal: "SIGHUP"}))
	equal("exit code", receive("its end", wait).ExitCode, 4)
	w.destroy(a, t)
	contains("stdout", t.logs.stdout.finished(), "sighup\n")
}

func rowExec(w *world) {
	a := w.launchPodman()
	t, _ := w.start(a, forever, "")
	exec := func(seconds time.Duration, script string) (*driver.ExecTaskResponse, error) {
		return a.driver.ExecTask(soon(), &driver.ExecTaskRequest{
			TaskId: t.id, Command: []string{"/bin/sh", "-c", script}, Timeout: duration(seconds),
		})
	}
	ran := must(exec(limit, "echo out; echo err >&2; exit 3"))
	equal("exec", fmt.Sprintf("%s%s%d", ran.Stdout, ran.Stderr, ran.Result.ExitCode), "out\nerr\n3")
	ran = must(exec(0, "echo no deadline"))
	equal("exec", string(ran.Stdout), "no deadline\n")
	_, err := exec(300*time.Millisecond, forever)
	demand(err != nil, "a command past its deadline is an error")
	_, err = a.driver.ExecTask(soon(), &driver.ExecTaskRequest{TaskId: "nobody", Command: []string{"true"}})
	demand(err != nil, "a task that is not there is an error")
	must(a.base.PluginInfo(soon(), &base.PluginInfoRequest{}))
	a.stop(t, "SIGKILL", 1)
	w.destroy(a, t)
}

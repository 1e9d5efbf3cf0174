package main

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pannier.example/conformance/wire/driver"
)

// benches compare the driver with Podman by itself in one run, and hold what does not depend on the machine. Ratios are asserted with
// -long alone: a short run on a busy machine says too little of them.
var benches = []check{
	{name: "bench: StartTask to running, beside podman run -d", run: benchStart, alone: true},
	{name: "bench: many tasks at once, all running, then stopped, none lost", run: benchMany, alone: true},
	{name: "bench: idle tasks with statistics each second", run: benchIdle, alone: true},
	{name: "bench: a flood of log, byte-exact, the container never blocked", run: benchFlood, alone: true},
}

// Goals of the long run.
const (
	startRatioMax  = 1.15
	idleCoreMax    = 0.01 // of one core
	idleCallsMax   = 1.0  // a second
	floodMemoryMax = 64 << 20
	floodStallMax  = time.Second
)

// scaled is the first number in a short run and the second in a long one.
func scaled[T any](w *world, short, long T) T {
	if w.long {
		return long
	}
	return short
}

// goal prints a measure beside its goal, and demands it of a long run.
func (w *world) goal(what string, got, most float64) {
	fmt.Printf("   %s: %.3f (goal: at most %.3f)\n", what, got, most)
	demand(!w.long || got <= most, "%s is %.3f, the goal is %.3f", what, got, most)
}

// benchStart starts containers of the same image by turns, with the same options, by the driver and by Podman's command line.
func benchStart(w *world) {
	rounds := scaled(w, 3, 20)
	a := w.launchPodman()
	var ours, theirs []time.Duration
	for n := range rounds + 1 {
		t := w.prepare(a, forever, "")
		began := time.Now()
		must(a.driver.StartTask(soon(), t.request))
		took := time.Since(began)
		equal("state", w.inspect(t).text("State", "Status"), "running")
		a.stop(t, "SIGKILL", 1)
		w.destroy(a, t)

		name := fmt.Sprint("bench-", t.token)
		w.atEnd(func() { w.removeContainer(name) })
		began = time.Now()
		w.podman("run", "-d", "--name", name, "--network", "host", "--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:8192",
			"--memory", "64m", "--cpu-shares", "100", "-v", t.folder+"/alloc:/alloc", "-v", t.own("local")+":/local", "-v", t.own("secrets")+":/secrets",
			w.image, "/bin/sh", "-c", forever)
		itsTook := time.Since(began)
		w.removeContainer(name)
		if n > 0 { // The first of each fills caches.
			ours, theirs = append(ours, took), append(theirs, itsTook)
		}
	}
	fmt.Printf("   StartTask: median %v of %v\n   podman run -d: median %v of %v\n", median(ours), spread(ours), median(theirs), spread(theirs))
	w.goal("ratio", float64(median(ours))/float64(median(theirs)), startRatioMax)
	a.end()
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2].Round(time.Millisecond)
}

func spread(times []time.Duration) string {
	slices.Sort(times)
	return fmt.Sprintf("%v to %v", times[0].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond))
}

// startMany starts tasks all at once and demands that all run.
func (w *world) startMany(a *agent, count int, script string) []*task {
	tasks := make([]*task, count)
	failures := make(chan error, count)
	for n := range tasks {
		tasks[n] = w.prepare(a, script, "")
	}
	for _, t := range tasks {
		go func() {
			_, err := a.driver.StartTask(waitFor(10*limit), t.request)
			failures <- err
		}()
	}
	for range tasks {
		err := <-failures
		demand(err == nil, "a start fails: %v", err)
	}
	running := string(w.tell("GET", `containers/json?filters={"status":["running"]}`, nil))
	for _, t := range tasks {
		demand(strings.Contains(running, t.container()), "%s does not run", t.container())
	}
	return tasks
}

// stopMany stops and destroys tasks all at once and demands that each ended as told.
func (w *world) stopMany(a *agent, tasks []*task) {
	codes := make(chan int32, len(tasks))
	for _, t := range tasks {
		go func() {
			ctx := waitFor(10 * limit)
			ended := make(chan int32, 1)
			go func() {
				response, err := a.driver.WaitTask(ctx, &driver.WaitTaskRequest{TaskId: t.id})
				if err != nil {
					ended <- -1
					return
				}
				ended <- response.Result.ExitCode
			}()
			_, err := a.driver.StopTask(ctx, &driver.StopTaskRequest{TaskId: t.id, Timeout: duration(limit), Signal: "SIGTERM"})
			code := <-ended
			_, destroyed := a.driver.DestroyTask(ctx, &driver.DestroyTaskRequest{TaskId: t.id, Force: true})
			if err != nil || destroyed != nil {
				code = -2
			}
			codes <- code
		}()
	}
	for range tasks {
		equal("exit code", <-codes, 42)
	}
	left := w.containers()
	for _, t := range tasks {
		demand(!strings.Contains(left, t.container()), "%s is left", t.container())
	}
}

// obedient ends with 42 when it is asked to.
const obedient = `trap 'exit 42' TERM; echo up; while :; do sleep 3600 & wait $!; done`

func benchMany(w *world) {
	count := scaled(w, 8, 100)
	a := w.launchPodman()
	health := must(a.driver.Fingerprint(waitFor(10*limit), &driver.FingerprintRequest{}))
	equal("health", must(health.Recv()).Health, driver.FingerprintResponse_HEALTHY)
	changes := make(chan *driver.FingerprintResponse, 100)
	go func() {
		for {
			change, err := health.Recv()
			if err != nil {
				return
			}
			changes <- change
		}
	}()
	began := time.Now()
	tasks := w.startMany(a, count, obedient)
	started := time.Now()
	for _, t := range tasks {
		eventually("it is up", func() bool { return t.logs.stdout.text() == "up\n" })
	}
	stopping := time.Now()
	w.stopMany(a, tasks)
	fmt.Printf("   %d tasks: running after %v, stopped and gone after %v more\n", count,
		started.Sub(began).Round(time.Millisecond), time.Since(stopping).Round(time.Millisecond))
	for _, t := range tasks {
		equal("stdout", t.logs.stdout.finished(), "up\n")
	}
	equal("changes of the driver's health under the load", len(changes), 0)
	a.end()
}

func benchIdle(w *world) {
	count, length := scaled(w, 5, 100), scaled(w, 3*time.Second, time.Minute)
	p := w.proxyTo(w.socket)
	a := w.launch()
	demand(a.configure(p.socket, "") == nil, "the plugin's options are refused")
	must(must(a.driver.Fingerprint(waitFor(10*limit), &driver.FingerprintRequest{})).Recv())
	tasks := w.startMany(a, count, obedient)
	samples := make(chan struct{}, 1000*count)
	for _, t := range tasks {
		go func() { _, _ = a.driver.WaitTask(waitFor(10*limit), &driver.WaitTaskRequest{TaskId: t.id}) }()
		stream := must(a.driver.TaskStats(waitFor(10*limit), &driver.TaskStatsRequest{TaskId: t.id, CollectionInterval: duration(time.Second)}))
		must(stream.Recv())
		go func() {
			for {
				if _, err := stream.Recv(); err != nil {
					return
				}
				samples <- struct{}{}
			}
		}()
	}
	calls, used, began := p.count(), cpuOf(a.pid()), time.Now()
	<-time.After(length)
	took := time.Since(began).Seconds()
	fmt.Printf("   %d tasks, %d samples in %.1f s\n", count, len(samples), took)
	demand(len(samples) > 0, "no statistics")
	share, rate := (cpuOf(a.pid())-used).Seconds()/took, float64(p.count()-calls)/took
	w.goal("calls to Podman a second", rate, idleCallsMax)
	w.goal("share of a core", share, idleCoreMax)
	w.stopMany(a, tasks)
	a.end()
}

// ticksPerSecond is in which the kernel counts a process's time. proc(5), /proc/pid/stat.
const ticksPerSecond = 100

// cpuOf is the time that a process has used.
func cpuOf(pid int) time.Duration {
	fields := stat(pid)
	demand(len(fields) > 12, "no process %d", pid)
	user, system := must(strconv.Atoi(fields[11])), must(strconv.Atoi(fields[12]))
	return time.Duration(user+system) * time.Second / ticksPerSecond
}

// memoryOf is the most that a process had in RAM at any time.
func memoryOf(pid int) float64 {
	for _, line := range strings.Split(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))), "\n") {
		if rest, found := strings.CutPrefix(line, "VmHWM:"); found {
			return float64(must(strconv.Atoi(strings.Fields(rest)[0])) << 10)
		}
	}
	panic(fmt.Sprintf("no memory of process %d", pid))
}

// flood is what the task writes: lines, with the time between two blocks of them measured by the task itself, so that a block of
// the pipe shows. /proc/uptime counts in hundredths.
const flood = `
	n=0; most=0; last=$(cut -d' ' -f1 /proc/uptime | tr -d .)
	while [ $n -lt %d ]; do
		cat /alloc/data/block
		now=$(cut -d' ' -f1 /proc/uptime | tr -d .)
		[ $((now - last)) -gt $most ] && most=$((now - last))
		last=$now; n=$((n+1))
	done
	echo $most > /alloc/data/most
`

func benchFlood(w *world) {
	const block = 1 << 20
	count := scaled(w, 10, 200)
	var text strings.Builder
	for text.Len() < block {
		fmt.Fprintf(&text, "%08d the quick brown fox jumps over the lazy dog, again and again and again\n", text.Len())
	}
	content := text.String()[:block-1] + "\n"
	want := sha256.New()
	for range count {
		_, _ = want.Write([]byte(content))
	}
	a := w.launchPodman()
	t := w.prepare(a, fmt.Sprintf(flood, count), "")
	demand(os.WriteFile(t.folder+"/alloc/data/block", []byte(content), 0o644) == nil, "cannot write")
	t.logs.stdout.only(sha256.New())
	began := time.Now()
	must(a.driver.StartTask(soon(), t.request))
	wait := make(chan int32, 1)
	go func() {
		response, err := a.driver.WaitTask(waitFor(10*limit), &driver.WaitTaskRequest{TaskId: t.id})
		if err == nil {
			wait <- response.Result.ExitCode
		}
	}()
	relay := t.relay()
	demand(syscall.Kill(relay, 0) == nil, "no log process")
	var relayMost float64
	for ended := false; !ended; {
		select {
		case code := <-wait:
			equal("exit code", code, 0)
			ended = true
		case <-time.After(20 * time.Millisecond):
			if runs(relay) {
				relayMost = max(relayMost, memoryOf(relay))
			}
		}
	}
	wrote := time.Since(began)
	memory := memoryOf(a.pid())
	w.destroy(a, t)
	got := t.logs.stdout.digest()
	fmt.Printf("   %d MiB: written within %v, read within %v; log process: %.1f MiB\n", count, wrote.Round(time.Millisecond),
		time.Since(began).Round(time.Millisecond), relayMost/(1<<20))
	demand(string(got) == string(want.Sum(nil)), "the log is not what was written")
	stall := time.Duration(must(strconv.Atoi(strings.TrimSpace(t.data("most"))))) * 10 * time.Millisecond
	w.goal("longest stall of the container, in seconds", stall.Seconds(), floodStallMax.Seconds())
	w.goal("memory of the plugin, in MiB", memory/(1<<20), floodMemoryMax/(1<<20))
	demand(memory < floodMemoryMax && relayMost < floodMemoryMax, "memory grows with the log")
	a.end()
}

// only has a reader keep a digest of what it reads instead of all of it.
func (l *pipeLog) only(digest hash.Hash) {
	l.Lock()
	defer l.Unlock()
	l.hash = digest
}

// digest waits for the end and returns the digest.
func (l *pipeLog) digest() []byte {
	receive("the end of "+l.path, l.done)
	return l.hash.Sum(nil)
}

// podman runs Podman's command line on the storage of the run's service, in its mounts.
func (w *world) podman(arguments ...string) {
	pid := w.servicePid()
	line := commandLine(pid)
	at := slices.Index(line, "system")
	if at < 0 {
		skip("the Podman service was not started as podman system service: %q", line)
	}
	command := near(pid, append(line[:at:at], arguments...)...)
	out, err := command.CombinedOutput()
	demand(err == nil, "podman %v: %v: %s", arguments, err, out)
}

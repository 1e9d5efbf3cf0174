package main

import (
	"fmt"
	"os"
	"strings"

	"pannier.example/conformance/wire/driver"
)

// idMap is what a task sees of its user ids.
func (w *world) idMap(a *agent, options string) []string {
	return strings.Fields(w.inside(a, order{script: "cat /proc/self/uid_map", options: options}))
}

// needSubids skips where Podman has no ids to give to user namespaces.
func (w *world) needSubids() {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root/etc/subuid", w.servicePid()))
	if !strings.Contains(string(text), "containers:") {
		skip("the host has no line for the user containers in /etc/subuid and /etc/subgid")
	}
}

func rowUserns(w *world) {
	a := w.launchPodman()
	equal("host", strings.Join(w.idMap(a, `userns = "host"`), " "), "0 0 4294967295")
	w.needSubids()
	got := w.idMap(a, `userns = "auto"`)
	demand(got[0] == "0" && got[1] != "0" && got[2] != "4294967295", "auto: %v", got)
}

func rowUsernsParsed(w *world) {
	w.needSubids()
	got := w.idMap(w.launchPodman(), `userns = "auto:size=65636"`)
	equal("size", got[2], "65636")
}

func rowUsernsTexts(w *world) {
	a := w.launchPodman()
	// The image is not there: that is how far the good ones come.
	for _, good := range []string{"host", "auto", "auto:size=1000", "auto:uidmapping=0:1000:10,gidmapping=0:1000:10", "keep-id", "nomap"} {
		w.refused(a, order{image: absent, options: fmt.Sprintf("userns = %q", good)}, absent)
	}
	for _, bad := range []string{"auto:size=many", "auto:uidmapping=1:x:1", "auto:nonsense=1", "sideways"} {
		w.refused(a, order{image: absent, options: fmt.Sprintf("userns = %q", bad)}, "userns", bad)
	}
}

func rowIPCModes(w *world) {
	a := w.launchPodman()
	host := must(os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", w.servicePid())))
	for mode, same := range map[string]bool{"host": true, "private": false, "shareable": false, "none": false} {
		out := w.inside(a, order{script: "readlink /proc/self/ns/ipc", options: fmt.Sprintf("ipc_mode = %q", mode)})
		equal(mode+" is the host's", out == host, same)
	}
	w.refused(a, order{options: `ipc_mode = "sideways"`}, "ipc_mode", "sideways")
}

func rowIPCTask(w *world) {
	a := w.launchPodman()
	first, _ := w.begin(a, order{name: "first", script: "readlink /proc/self/ns/ipc > /alloc/data/first; " + forever, options: `ipc_mode = "shareable"`})
	eventually("it is up", func() bool { return strings.HasSuffix(first.data("first"), "\n") })
	out := w.inside(a, order{name: "second", alloc: first.alloc, script: "readlink /proc/self/ns/ipc", options: `ipc_mode = "task:first"`})
	equal("namespace", out, strings.TrimSpace(first.data("first")))
	a.stop(first, "SIGKILL", 1)
	w.destroy(a, first)
}

func rowShmSize(w *world) {
	a := w.launchPodman()
	equal("size", w.inside(a, order{script: "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", options: `shm_size = "3m"`}), "3072")
	w.refused(a, order{options: "shm_size = \"3m\"\nipc_mode = \"host\""}, "shm_size", "ipc_mode")
}

func rowEntrypoint(w *world) {
	a := w.launchPodman()
	options := "working_dir = \"/tmp\"\nentrypoint = [\"/bin/env\", \"A=b\"]"
	equal("output", w.inside(a, order{script: `echo $(pwd) $A`, options: options}), "/tmp b")
	equal("output", w.inside(a, order{script: "echo single", options: `entrypoint = "/bin/env"`}), "single")
}

func rowCpuset(w *world) {
	change := func(c *driver.TaskConfig) { c.Resources.LinuxResources.CpusetCpus = "0" }
	equal("cores", w.inside(w.launchPodman(), order{script: "grep Cpus_allowed_list /proc/self/status | cut -f2", change: change}), "0")
}

func rowCPULimits(w *world) {
	a := w.launchPodman()
	var info tree
	w.read("info", &info)
	cpus := info.number("host", "cpus")
	for _, one := range []struct {
		options              string
		shares, quota, every int64
	}{
		{"", 100, 0, 0},
		{"cpu_hard_limit = true", 100, 10000 * cpus, 100000},
		{"cpu_hard_limit = true\ncpu_cfs_period = 50000", 100, 5000 * cpus, 50000},
		// The kernel takes no less than a millisecond.
		{"cpu_hard_limit = true\ncpu_cfs_period = 1000", 100, 1000, 1000},
	} {
		w.made(a, order{options: one.options}, func(found tree) {
			equal("shares", found.number("HostConfig", "CpuShares"), one.shares)
			equal("quota", found.number("HostConfig", "CpuQuota"), one.quota)
			equal("period", found.number("HostConfig", "CpuPeriod"), one.every)
		})
	}
	w.refused(a, order{options: "cpu_hard_limit = true\ncpu_cfs_period = 2000000"}, "cpu_cfs_period")
}

func rowMemoryLimits(w *world) {
	const mib = 1 << 20
	a := w.launchPodman()
	for _, one := range []struct {
		memory, most int64
		options      string
		hard, soft   int64
	}{
		{64, 0, "", 64, 0},
		{64, 128, "", 128, 64},
		{64, 0, `memory_reservation = "32m"`, 64, 32},
		{64, 128, `memory_reservation = "32m"`, 128, 32},
		{64, 128, `memory_reservation = "100m"`, 128, 64},
		{64, -1, "", 0, 64},
	} {
		change := func(c *driver.TaskConfig) {
			c.Resources.AllocatedResources.Memory.MemoryMb = one.memory
			c.Resources.AllocatedResources.Memory.MemoryMaxMb = one.most
		}
		w.made(a, order{options: one.options, change: change}, func(found tree) {
			what := fmt.Sprint(one)
			equal("memory of "+what, found.number("HostConfig", "Memory"), one.hard*mib)
			equal("reservation of "+what, found.number("HostConfig", "MemoryReservation"), one.soft*mib)
		})
	}
}

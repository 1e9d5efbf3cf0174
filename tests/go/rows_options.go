package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"pannier.example/conformance/wire/driver"
)

// optionRows are the rows about what a container is made like. Most look from inside, some ask Podman.
var optionRows = []check{
	{name: "ExtraLabels (chosen by globs)", run: rowExtraLabels},
	{name: "Labels (the job's, on the container)", run: rowLabels},
	{name: "Hostname (inside)", run: func(w *world) {
		equal("hostname", w.inside(w.launchPodman(), order{script: "hostname", options: `hostname = "host-of-task"`}), "host-of-task")
	}},
	{name: "Init (pid 1 is the init)", run: rowInit},
	{name: "OOM (killed, and said so)", run: rowOOM},
	{name: "User (whoami)", run: func(w *world) {
		change := func(c *driver.TaskConfig) { c.User = "nobody" }
		equal("user", w.inside(w.launchPodman(), order{script: "whoami", change: change}), "nobody")
	}},
	{name: "Device (/dev/... is there, under another name, with permissions)", run: func(w *world) {
		options := `devices = ["/dev/full", "/dev/null:/dev/other:r"]`
		out := w.inside(w.launchPodman(), order{script: `[ -c /dev/full ] && [ -c /dev/other ] && echo both`, options: options})
		equal("devices", out, "both")
	}},
	{name: "Device, of a device plugin", run: rowPluggedDevice},
	{name: "Swap (memory, swap, swappiness, reservation)", run: rowSwap},
	{name: "Tmpfs (mounted, with its size)", run: func(w *world) {
		out := w.inside(w.launchPodman(), order{script: "grep ' /tmp/data ' /proc/mounts", options: `tmpfs = ["/tmp/data:size=1m"]`})
		contains("mounts", out, "tmpfs", "size=1024k")
	}},
	{name: "Mount (volumes, read-only, relative; missing: error)", run: rowMount},
	{name: "Mount, volumes disabled (host paths are refused, the allocation's are not)", run: rowVolumesDisabled},
	{name: "Mount, Nomad's own (host volumes, read-only, propagation)", run: rowNomadMounts},
	{name: "DefaultCaps (Podman's)", run: rowDefaultCaps},
	{name: "Caps (add and drop)", run: rowCaps},
	{name: "DefaultProcessLabel (SELinux's where it is on)", run: rowProcessLabel},
	{name: "SecurityOpt (no-new-privileges)", run: rowSecurityOpt},
	{name: "Tty (stdout is a terminal)", run: rowTty},
	{name: "Privileged (all capabilities)", run: rowPrivileged},
	{name: "AppArmorDefault (Podman's profile where AppArmor is on)", run: func(w *world) { rowAppArmor(w, "", "containers-default") }},
	{name: "AppArmorUnconfined (no profile)", run: func(w *world) { rowAppArmor(w, `apparmor_profile = "unconfined"`, "unconfined") }},
	{name: "Ulimit (values; bad syntax: error)", run: rowUlimit},
	{name: "PidsLimit (in the cgroup)", run: rowPidsLimit},
	{name: "ReadOnlyFilesystem (writes fail)", run: func(w *world) {
		script := "touch /new && echo written || echo refused; touch /alloc/data/new && echo alloc"
		out := w.inside(w.launchPodman(), order{script: script, options: `readonly_rootfs = true`})
		contains("touch", out, "refused", "alloc")
	}},
	{name: "UsernsMode (host: the same ids; auto: others)", run: rowUserns},
	{name: "UsernsModeParsed (auto with a size)", run: rowUsernsParsed},
	{name: "UserNSConfigParsing (good and bad texts)", run: rowUsernsTexts},
	{name: "IPCModes (host, private, shareable, none; others: error)", run: rowIPCModes},
	{name: "IPCMode_Task (the namespace of another task)", run: rowIPCTask},
	{name: "IPCMode_ShmSizeConflict (error)", run: rowShmSize},
	{name: "Sysctl (inside)", run: func(w *world) {
		options := "network_mode = \"none\"\nsysctl = [{ \"net.core.somaxconn\" = \"12321\" }]"
		equal("sysctl", w.inside(w.launchPodman(), order{script: "cat /proc/sys/net/core/somaxconn", options: options}), "12321")
	}},
	{name: "WorkingDir and Entrypoint (list, and the deprecated string)", run: rowEntrypoint},
	{name: "setTaskCpuset (the cores of the task)", run: rowCpuset},
	{name: "cpuLimits (table)", run: rowCPULimits},
	{name: "memoryLimits (table)", run: rowMemoryLimits},
	{name: "PodmanOOMScoreAdj (inside)", run: func(w *world) {
		equal("score", w.inside(w.launchPodman(), order{script: "cat /proc/self/oom_score_adj", options: "oom_score_adj = 321"}), "321")
	}},
}

// made starts a task that stays, hands over what Podman says of it, and destroys it.
func (w *world) made(a *agent, o order, look func(tree)) {
	o.script = forever
	t, _ := w.begin(a, o)
	look(w.inspect(t))
	w.destroy(a, t)
}

func rowExtraLabels(w *world) {
	const prefix = "com.hashicorp.nomad."
	for _, one := range []struct{ globs, want, absent string }{
		{`["job_*"]`, "job_id job_name alloc_id", "task_name node_name"},
		{`["*name"]`, "job_name task_group_name task_name node_name", "job_id node_id"},
		{`["task*", "node_id", "namespace"]`, "task_group_name task_name node_id namespace", "job_name node_name"},
	} {
		a := w.launchWith("extra_labels = " + one.globs)
		w.made(a, order{}, func(found tree) {
			for _, label := range strings.Fields(one.want) {
				demand(found.at("Config", "Labels", prefix+label) != nil, "%s: no label %s", one.globs, label)
			}
			for _, label := range strings.Fields(one.absent) {
				demand(found.at("Config", "Labels", prefix+label) == nil, "%s: label %s", one.globs, label)
			}
		})
		a.end()
	}
}

func rowLabels(w *world) {
	w.made(w.launchPodman(), order{options: `labels = [{ team = "blue" }, { "a.b" = "c", team = "red" }]`}, func(found tree) {
		equal("a label", found.text("Config", "Labels", "a.b"), "c")
		equal("the later wins", found.text("Config", "Labels", "team"), "red")
	})
}

// rowInit brings its own init, which is a script: it ends up as pid 1, with the program as its child.
func rowInit(w *world) {
	program := w.folder + "/init"
	text := "#!/bin/sh\nwhile [ \"$1\" = -- ]; do shift; done\n\"$@\"\nexit $?\n"
	writeProgram(program, text)
	options := fmt.Sprintf("init = true\ninit_path = %q", program)
	out := w.inside(w.launchPodman(), order{script: "tr '\\0' ' ' < /proc/1/cmdline", options: options})
	demand(strings.Contains(out, "init"), "pid 1 is %q", out)
}

func rowOOM(w *world) {
	a := w.launchPodman()
	change := func(c *driver.TaskConfig) {
		c.Resources.AllocatedResources.Memory.MemoryMb = 16
		c.Resources.LinuxResources.MemoryLimitBytes = 16 << 20
	}
	t, _ := w.begin(a, order{script: "exec tail /dev/zero", change: change})
	result := receive("its end", a.waiting(t.id))
	equal("exit code", result.ExitCode, 137)
	equal("signal", result.Signal, 9)
	demand(result.OomKilled, "the result does not say that it was out of memory")
	w.destroy(a, t)
}

func rowPluggedDevice(w *world) {
	change := func(c *driver.TaskConfig) {
		c.Devices = append(c.Devices, &driver.Device{TaskPath: "/dev/plugged", HostPath: "/dev/full", CgroupPermissions: "rw"})
	}
	equal("device", w.inside(w.launchPodman(), order{script: `[ -c /dev/plugged ] && echo there`, change: change}), "there")
}

func rowSwap(w *world) {
	options := "memory_reservation = \"32m\"\nmemory_swap = \"128m\""
	var info tree
	w.read("info", &info)
	v1 := info.text("host", "cgroupVersion") == "v1"
	if v1 {
		options += "\nmemory_swappiness = 60"
	}
	a := w.launchPodman()
	w.made(a, order{options: options}, func(found tree) {
		equal("memory", found.number("HostConfig", "Memory"), 64<<20)
		equal("reservation", found.number("HostConfig", "MemoryReservation"), 32<<20)
		equal("swap", found.number("HostConfig", "MemorySwap"), 128<<20)
		demand(!v1 || found.number("HostConfig", "MemorySwappiness") == 60, "swappiness: %v", found.at("HostConfig", "MemorySwappiness"))
	})
	// Podman alone would give as much swap again as there is memory.
	w.made(a, order{}, func(found tree) { equal("swap", found.number("HostConfig", "MemorySwap"), 64<<20) })
}

func rowMount(w *world) {
	a := w.launchPodman()
	shared := w.folder + "/shared"
	demand(os.Mkdir(shared, 0o777) == nil && os.WriteFile(shared+"/file", []byte("host"), 0o644) == nil, "cannot write %s", shared)
	options := fmt.Sprintf(`volumes = ["%[1]s:/rw", "%[1]s:/ro:ro", "local:/rel"]`, shared)
	script := `cat /rw/file /ro/file; echo new > /rw/new || exit 1; echo no > /ro/no && exit 1; echo rel > /rel/file; cat /local/file`
	contains("output", w.inside(a, order{script: script, options: options}), "hosthost", "rel")
	equal("written", string(must(os.ReadFile(shared+"/new"))), "new\n")
	w.refused(a, order{options: fmt.Sprintf(`volumes = ["%s/absent:/x"]`, shared)}, shared+"/absent")
	w.refused(a, order{options: `volumes = ["/nothing-but-a-source"]`}, "volume")
}

func rowVolumesDisabled(w *world) {
	a := w.launchWith("volumes {\n enabled = false\n}")
	w.refused(a, order{options: `volumes = ["/etc:/etc2"]`}, "volumes are not enabled", "/etc")
	w.refused(a, order{options: `volumes = ["../../../..:/up"]`}, "volumes are not enabled")
	out := w.inside(a, order{script: "echo in > /rel/file; cat /local/file", options: `volumes = ["local:/rel"]`})
	equal("output", out, "in")
}

func rowNomadMounts(w *world) {
	a := w.launchPodman()
	source := w.folder + "/volume"
	demand(os.Mkdir(source, 0o777) == nil && os.WriteFile(source+"/file", []byte("vol"), 0o644) == nil, "cannot write %s", source)
	change := func(c *driver.TaskConfig) {
		c.Mounts = append(c.Mounts,
			&driver.Mount{TaskPath: "/data", HostPath: source, PropagationMode: "private"},
			&driver.Mount{TaskPath: "/data-ro", HostPath: source, Readonly: true},
			&driver.Mount{TaskPath: "/data-slave", HostPath: source, PropagationMode: "host-to-task"})
	}
	script := `cat /data/file; echo new > /data/new || exit 1; echo no > /data-ro/no && exit 1; grep ' /data-slave ' /proc/self/mountinfo`
	out := w.inside(a, order{script: script, change: change})
	contains("output", out, "vol", " /data-slave ")
	// Where the host's mounts are private, as without systemd, nothing can propagate.
	mounts := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", w.servicePid()))))
	for _, line := range strings.Split(mounts, "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == "/" && strings.Contains(line, " shared:") {
			contains("output", out, "master:")
		}
	}
	change = func(c *driver.TaskConfig) {
		c.Mounts = append(c.Mounts, &driver.Mount{TaskPath: "/data", HostPath: source, PropagationMode: "sideways"})
	}
	w.refused(a, order{change: change}, "sideways")
}

// capabilities are the effective ones of a task's program.
func (w *world) capabilities(a *agent, options string) uint64 {
	out := w.inside(a, order{script: "grep CapEff /proc/self/status", options: options})
	return must(strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(out, "CapEff:")), 16, 64))
}

// Numbers of capabilities. capabilities(7).
const (
	capChown    = 0
	capSetuid   = 7
	capNetAdmin = 12
	capSysAdmin = 21
	capSysTime  = 25
	capSetfcap  = 31
)

func has(capabilities uint64, number int) bool {
	return capabilities&(1<<number) != 0
}

func rowDefaultCaps(w *world) {
	set := w.capabilities(w.launchPodman(), "")
	for _, number := range []int{capChown, capSetuid, capSetfcap} {
		demand(has(set, number), "capability %d is not there: %x", number, set)
	}
	for _, number := range []int{capNetAdmin, capSysAdmin, capSysTime} {
		demand(!has(set, number), "capability %d is there: %x", number, set)
	}
}

func rowCaps(w *world) {
	a := w.launchPodman()
	set := w.capabilities(a, "cap_add = [\"NET_ADMIN\"]\ncap_drop = [\"CHOWN\"]")
	demand(has(set, capNetAdmin) && !has(set, capChown) && has(set, capSetuid), "capabilities: %x", set)
	equal("all dropped", w.capabilities(a, `cap_drop = ["all"]`), 0)
	w.refused(a, order{options: `cap_add = ["NO_SUCH_CAPABILITY"]`}, "no_such_capability")
}

func rowPrivileged(w *world) {
	set := w.capabilities(w.launchPodman(), "privileged = true")
	demand(has(set, capSysAdmin) && has(set, capNetAdmin) && has(set, capSysTime), "capabilities: %x", set)
}

func rowProcessLabel(w *world) {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	w.made(w.launchPodman(), order{}, func(found tree) {
		equal("it has a label", found.text("ProcessLabel") != "", err == nil)
	})
}

func rowSecurityOpt(w *world) {
	a := w.launchPodman()
	for option, want := range map[string]string{`security_opt = ["no-new-privileges"]`: "1", `security_opt = []`: "0"} {
		out := w.inside(a, order{script: "grep NoNewPrivs /proc/self/status | tr -dc 01", options: option})
		equal(option, out, want)
	}
	w.refused(a, order{options: `security_opt = ["nonsense=1"]`}, "security_opt", "nonsense")
}

func rowTty(w *world) {
	a := w.launchPodman()
	t, _ := w.start(a, "[ -t 1 ] && echo terminal", "tty = true")
	equal("exit code", receive("its end", a.waiting(t.id)).ExitCode, 0)
	w.destroy(a, t)
	contains("stdout", t.logs.stdout.finished(), "terminal")
}

func rowAppArmor(w *world, options, want string) {
	enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	w.made(w.launchPodman(), order{options: options}, func(found tree) {
		profile := found.text("AppArmorProfile")
		if strings.HasPrefix(string(enabled), "Y") {
			contains("profile", profile, want)
		} else {
			demand(profile == "" || profile == "unconfined", "a profile without AppArmor: %s", profile)
		}
	})
}

func rowUlimit(w *world) {
	a := w.launchPodman()
	out := w.inside(a, order{script: "grep -E 'open files|processes' /proc/self/limits", options: `ulimit = [{ nofile = "512:2048", nproc = "4242" }]`})
	equal("limits", strings.Join(strings.Fields(out), " "), "Max processes 4242 4242 processes Max open files 512 2048 files")
	for _, bad := range []string{`nofile = "abc"`, `nofile = "1:2:3"`, `nofile = ":5"`, `nofile = "9:5"`, `nonsense = "1"`} {
		w.refused(a, order{options: "ulimit = [{ " + bad + " }]"}, strings.Fields(bad)[0])
	}
}

func rowPidsLimit(w *world) {
	script := `cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null
		for n in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo all`
	a := w.launchPodman()
	t, _ := w.start(a, "exec > /alloc/data/out 2>&1\n"+script, "pids_limit = 6")
	receive("its end", a.waiting(t.id))
	equal("limit", w.inspect(t).number("HostConfig", "PidsLimit"), 6)
	out := t.data("out")
	demand(strings.Contains(out, "6\n") && !strings.Contains(out, "all"), "it wrote: %s", out)
	w.destroy(a, t)
}

package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"pannier.example/conformance/wire/base"
	"pannier.example/conformance/wire/driver"
)

// task is one that the running check asks the driver for, with everything Nomad would have made around it.
type task struct {
	id, name, alloc, token string
	request                *driver.StartTaskRequest
	logs                   *logmon
}

// configure hands over the plugin's options, as the agent does on the process that it keeps.
func (a *agent) configure(w *world) {
	spec := must(a.base.ConfigSchema(soon(), &base.ConfigSchemaRequest{})).Spec
	core := &base.ClientTopologyCore{BaseSpeed: 1000, MaxSpeed: 2000}
	must(a.base.SetConfig(soon(), &base.SetConfigRequest{
		MsgpackConfig:    encode(spec, fmt.Sprintf("socket_path = %q", "unix://"+w.socket)),
		NomadConfig:      &base.NomadConfig{Driver: &base.NomadDriverConfig{Topology: &base.ClientTopology{Cores: []*base.ClientTopologyCore{core}}}},
		PluginApiVersion: "v0.1.0",
	}))
	must(a.driver.Init(soon(), &driver.InitRequest{}))
}

// launchPodman launches the plugin and configures it.
func (w *world) launchPodman() *agent {
	a := w.launch()
	a.configure(w)
	return a
}

// prepare makes what Nomad makes before it starts a task: directories, log FIFOs and their reader, and the configuration by the
// driver's own schema. `more` is added to the task's configuration.
func (w *world) prepare(a *agent, script, more string) *task {
	var random [8]byte
	must(rand.Read(random[:]))
	t := &task{name: "work", token: hex.EncodeToString(random[:])}
	t.alloc = "alloc-" + t.token
	t.id = t.alloc + "/" + t.name + "/1"
	folder := filepath.Join(w.folder, t.alloc)
	for _, place := range []string{"alloc/logs", "alloc/data", t.name + "/local", t.name + "/secrets"} {
		demand(os.MkdirAll(filepath.Join(folder, place), 0o777) == nil, "cannot make %s", place)
	}
	t.logs = collect(filepath.Join(folder, "alloc/logs"), t.name)

	// The token is found again in the process's command line, which is how the check knows its pid without asking the driver.
	script = ": " + t.token + "\n" + script
	config := fmt.Sprintf(`
		image        = %s
		command      = "/bin/sh"
		args         = ["-c", %s]
		network_mode = "host"
		ulimit       = [{ nofile = "1024:4096", nproc = "4096:8192" }]
		%s`, quote(w.image), quote(script), more)
	spec := must(a.driver.TaskConfigSchema(soon(), &driver.TaskConfigSchemaRequest{})).Spec
	t.request = &driver.StartTaskRequest{Task: &driver.TaskConfig{
		Id: t.id, Name: t.name, AllocId: t.alloc, JobId: "job", JobName: "job", TaskGroupName: "group", Namespace: "default",
		NodeId: "node", NodeName: "node",
		MsgpackDriverConfig: encode(spec, config),
		Env:                 map[string]string{"NOMAD_ALLOC_DIR": "/alloc", "NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets"},
		AllocDir:            folder,
		StdoutPath:          t.logs.stdout.path,
		StderrPath:          t.logs.stderr.path,
		Resources: &driver.Resources{
			AllocatedResources: &driver.AllocatedTaskResources{
				Cpu: &driver.AllocatedCpuResources{CpuShares: 100}, Memory: &driver.AllocatedMemoryResources{MemoryMb: 64},
			},
			LinuxResources: &driver.LinuxResources{CpuShares: 100, MemoryLimitBytes: 64 << 20, PercentTicks: 0.1},
		},
	}}
	return t
}

// start prepares a task and starts it.
func (w *world) start(a *agent, script, more string) (*task, *driver.TaskHandle) {
	t := w.prepare(a, script, more)
	return t, must(a.driver.StartTask(soon(), t.request)).Handle
}

// quote writes text as an HCL string.
func quote(text string) string {
	text = strconv.Quote(text)
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(text)
}

// afterRestart is a handle as an agent that was restarted gives it back: without the driver's part of the task's configuration.
func afterRestart(handle *driver.TaskHandle) *driver.RecoverTaskRequest {
	handle = proto.Clone(handle).(*driver.TaskHandle)
	handle.Config.MsgpackDriverConfig = nil
	return &driver.RecoverTaskRequest{Handle: handle}
}

// pid is the task's first process, as the host sees it: the shell whose command line has the token. conmon's line has not; a
// child of the shell has until it executes another program, and is told by its parent.
func (t *task) pid() int {
	found := 0
	eventually("the task's process is there", func() bool {
		entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, entry := range entries {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(entry)))
			if fields := stat(pid); t.runs(pid) && len(fields) > 1 {
				if parent, _ := strconv.Atoi(fields[1]); !t.runs(parent) {
					found = pid
				}
			}
		}
		return found != 0
	})
	return found
}

// runs tells whether a process runs the task's script.
func (t *task) runs(pid int) bool {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.HasPrefix(string(line), "/bin/sh\x00-c\x00: "+t.token)
}

// destroy removes the task and demands that nothing of it is left, also when asked again.
func (w *world) destroy(a *agent, t *task) {
	for range 2 {
		must(a.driver.DestroyTask(soon(), &driver.DestroyTaskRequest{TaskId: t.id, Force: true}))
	}
	demand(!strings.Contains(w.containers(), t.alloc), "its container is left:\n%s", w.containers())
}

// stop asks the driver to stop a task.
func (a *agent) stop(t *task, signal string, seconds int64) {
	timeout := &durationpb.Duration{Seconds: seconds}
	must(a.driver.StopTask(soon(), &driver.StopTaskRequest{TaskId: t.id, Signal: signal, Timeout: timeout}))
}

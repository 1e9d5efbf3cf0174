package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"pannier.example/conformance/wire/base"
	"pannier.example/conformance/wire/driver"
	"pannier.example/conformance/wire/structs"
)

// task is one that the running check asks the driver for, with everything Nomad would have made around it.
type task struct {
	id, name, alloc, token string
	folder                 string // the allocation's
	request                *driver.StartTaskRequest
	logs                   *logmon
}

// order is what a check wants of a task beyond the ordinary.
type order struct {
	script  string // run by the image's shell
	options string // attributes and blocks of the task's configuration; what is given here replaces the default
	image   string // if it is another than the run's
	name    string
	alloc   string // of the first task of an order, if several shall be in one allocation
	change  func(*driver.TaskConfig)
}

// configure hands over the plugin's options, as the agent does on the process that it keeps.
func (a *agent) configure(socket, options string) error {
	spec := must(a.base.ConfigSchema(soon(), &base.ConfigSchemaRequest{})).Spec
	if socket != "" {
		options = fmt.Sprintf("socket_path = %q\n%s", "unix://"+socket, options)
	}
	msgpack, err := tryEncode(spec, options)
	if err != nil {
		return err
	}
	core := &base.ClientTopologyCore{BaseSpeed: 1000, MaxSpeed: 2000}
	_, err = a.base.SetConfig(soon(), &base.SetConfigRequest{
		MsgpackConfig:    msgpack,
		NomadConfig:      &base.NomadConfig{Driver: &base.NomadDriverConfig{Topology: &base.ClientTopology{Cores: []*base.ClientTopologyCore{core}}}},
		PluginApiVersion: "v0.1.0",
	})
	if err != nil {
		return err
	}
	a.init()
	return nil
}

// init tells the plugin that the agent will keep it. A driver made before there was this call does not know it.
func (a *agent) init() {
	_, err := a.driver.Init(soon(), &driver.InitRequest{})
	demand(err == nil || status.Code(err) == codes.Unimplemented, "Init: %v", err)
}

// launchPodman launches the plugin and configures it.
func (w *world) launchPodman() *agent {
	return w.launchWith("")
}

// launchWith launches the plugin with more options than the socket's path.
func (w *world) launchWith(options string) *agent {
	a := w.launch()
	err := a.configure(w.socket, options)
	demand(err == nil, "the plugin's options are refused: %v", err)
	return a
}

// order makes what Nomad makes before it starts a task: directories, log FIFOs and their reader, and the configuration by the
// driver's own schema.
func (w *world) order(a *agent, o order) *task {
	var random [8]byte
	must(rand.Read(random[:]))
	t := &task{name: o.name, token: hex.EncodeToString(random[:]), alloc: o.alloc}
	if t.name == "" {
		t.name = "work"
	}
	if t.alloc == "" {
		t.alloc = "alloc-" + t.token
	}
	t.id = t.alloc + "/" + t.name + "/" + t.token
	t.folder = filepath.Join(w.folder, t.alloc)
	for _, place := range []string{"alloc/logs", "alloc/data", t.name + "/local", t.name + "/secrets"} {
		place = filepath.Join(t.folder, place)
		demand(os.MkdirAll(place, 0o777) == nil && os.Chmod(place, 0o777) == nil, "cannot make %s", place)
	}
	t.logs = collect(filepath.Join(t.folder, "alloc/logs"), t.name)
	w.atEnd(func() { w.removeContainer(t.container()) })

	spec := must(a.driver.TaskConfigSchema(soon(), &driver.TaskConfigSchemaRequest{})).Spec
	t.request = &driver.StartTaskRequest{Task: &driver.TaskConfig{
		Id: t.id, Name: t.name, AllocId: t.alloc, JobId: "job", JobName: "job", TaskGroupName: "group", Namespace: "default",
		NodeId: "node", NodeName: "node",
		MsgpackDriverConfig: encode(spec, w.options(o, t.token)),
		Env: map[string]string{
			"NOMAD_ALLOC_DIR": "/alloc", "NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets", "NOMAD_ALLOC_ID": t.alloc,
		},
		AllocDir:   t.folder,
		StdoutPath: t.logs.stdout.path,
		StderrPath: t.logs.stderr.path,
		Resources: &driver.Resources{
			AllocatedResources: &driver.AllocatedTaskResources{
				Cpu: &driver.AllocatedCpuResources{CpuShares: 100}, Memory: &driver.AllocatedMemoryResources{MemoryMb: 64},
			},
			LinuxResources: &driver.LinuxResources{CpuShares: 100, MemoryLimitBytes: 64 << 20, PercentTicks: 0.1},
		},
	}}
	if o.change != nil {
		o.change(t.request.Task)
	}
	return t
}

// options is the text of the task's configuration. The token is found again in the process's command line, which is how a check
// knows its pid without asking the driver.
func (w *world) options(o order, token string) string {
	image := o.image
	if image == "" {
		image = w.image
	}
	defaults := [][2]string{
		{"image", quote(image)},
		{"command", quote("/bin/sh")},
		{"args", fmt.Sprintf(`["-c", %s]`, quote(": "+token+"\n"+o.script))},
		{"network_mode", quote("host")},
		// What every host allows; some allow less than Podman asks for by itself.
		{"ulimit", `[{ nofile = "1024:4096", nproc = "4096:8192" }]`},
	}
	text := o.options + "\n"
	for _, option := range defaults {
		given := regexp.MustCompile(`(?m)^\s*` + option[0] + `\s*[={]`)
		if !given.MatchString(o.options) {
			text += option[0] + " = " + option[1] + "\n"
		}
	}
	return text
}

// prepare orders a task with a script and options.
func (w *world) prepare(a *agent, script, options string) *task {
	return w.order(a, order{script: script, options: options})
}

// start prepares a task and starts it.
func (w *world) start(a *agent, script, options string) (*task, *driver.TaskHandle) {
	return w.begin(a, order{script: script, options: options})
}

// begin orders a task and starts it.
func (w *world) begin(a *agent, o order) (*task, *driver.TaskHandle) {
	t := w.order(a, o)
	return t, must(a.driver.StartTask(soon(), t.request)).Handle
}

// inside runs a script in a task to its end and returns what it wrote, which must have gone well. The output comes through a file
// of the allocation, so that it does not depend on how the driver handles logs.
func (w *world) inside(a *agent, o order) string {
	o.script = "exec > /alloc/data/out 2>&1\n" + o.script
	t, _ := w.begin(a, o)
	result := receive("the task's end", a.waiting(t.id))
	out := t.data("out")
	demand(result.ExitCode == 0, "exit code %d, it wrote: %s", result.ExitCode, out)
	w.destroy(a, t)
	return strings.TrimSpace(out)
}

// refused demands that a task cannot start, that the error has these parts, and that nothing of it is left.
func (w *world) refused(a *agent, o order, parts ...string) error {
	t := w.order(a, o)
	_, err := a.driver.StartTask(soon(), t.request)
	demand(err != nil, "it starts, though it must not")
	contains("the error", strings.ToLower(status.Convert(err).Message()), lower(parts)...)
	demand(!strings.Contains(w.containers(), t.container()), "a failed start leaves a container")
	return err
}

func lower(parts []string) []string {
	all := make([]string, len(parts))
	for n, part := range parts {
		all[n] = strings.ToLower(part)
	}
	return all
}

// recoverable tells whether a failed start says that Nomad may try again.
func recoverable(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if detail, ok := detail.(*structs.RecoverableError); ok {
			return detail.Recoverable
		}
	}
	return false
}

// container is the name that the task's container has.
func (t *task) container() string {
	return t.name + "-" + t.alloc
}

// own is a path in the task's own folder, where Nomad keeps what is not the allocation's.
func (t *task) own(place string) string {
	return filepath.Join(t.folder, t.name, place)
}

// data is what the task wrote into a file of its allocation.
func (t *task) data(name string) string {
	bytes, _ := os.ReadFile(filepath.Join(t.folder, "alloc/data", name))
	return string(bytes)
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

// pid is the task's first process, as the host sees it.
func (t *task) pid() int {
	found := 0
	eventually("the task's process is there", func() bool {
		if pids := t.pids(); len(pids) > 0 {
			found = pids[0]
		}
		return found != 0
	})
	return found
}

// pids are the first processes of the task's runs: the shell whose command line has the token. conmon's line has not; a child of
// the shell has until it executes another program, and is told by its parent.
func (t *task) pids() []int {
	var found []int
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, entry := range entries {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(entry)))
		if fields := stat(pid); t.runs(pid) && len(fields) > 1 {
			if parent, _ := strconv.Atoi(fields[1]); !t.runs(parent) {
				found = append(found, pid)
			}
		}
	}
	return found
}

// runs tells whether a process runs the task's script.
func (t *task) runs(pid int) bool {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.HasPrefix(string(line), "/bin/sh\x00-c\x00: "+t.token)
}

// destroy removes the task and demands that nothing of it is left.
func (w *world) destroy(a *agent, t *task) {
	must(a.driver.DestroyTask(soon(), &driver.DestroyTaskRequest{TaskId: t.id, Force: true}))
	demand(!strings.Contains(w.containers(), t.container()), "its container is left:\n%s", w.containers())
}

// stop asks the driver to stop a task.
func (a *agent) stop(t *task, signal string, seconds int64) {
	timeout := &durationpb.Duration{Seconds: seconds}
	must(a.driver.StopTask(soon(), &driver.StopTaskRequest{TaskId: t.id, Signal: signal, Timeout: timeout}))
}

// duration is one as the wire has it.
func duration(d time.Duration) *durationpb.Duration {
	return durationpb.New(d)
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"pannier.example/conformance/wire/base"
	"pannier.example/conformance/wire/driver"
)

// handshake is what Nomad and its plugins agree on.
var handshake = plugin.HandshakeConfig{
	ProtocolVersion:  2,
	MagicCookieKey:   "NOMAD_PLUGIN_MAGIC_COOKIE",
	MagicCookieValue: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
}

// agent is a Nomad agent as far as one plugin can tell.
type agent struct {
	client *plugin.Client
	rpc    plugin.ClientProtocol
	base   base.BasePluginClient
	driver driver.DriverClient
	log    *logBuffer
	// reattached is set when another agent launched the plugin.
	reattached bool
}

// connection hands a plugin's gRPC connection through go-plugin, which knows plugins by kind and not by service.
type connection struct{ plugin.NetRPCUnsupportedPlugin }

func (connection) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return fmt.Errorf("this side is the host")
}

func (connection) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// launch starts the plugin as Nomad's loader does: no TLS, gRPC only, the agent's own environment.
func (w *world) launch() *agent {
	return w.dispense(w.clientConfig())
}

// reattach attaches to a plugin that another agent launched.
func (w *world) reattach(where *plugin.ReattachConfig) *agent {
	config := w.clientConfig()
	config.Cmd, config.Reattach = nil, where
	return w.dispense(config)
}

func (w *world) clientConfig() *plugin.ClientConfig {
	command := exec.Command(w.plugin)
	command.Env = append(command.Environ(), "TMPDIR="+w.folder, "PATH="+w.path+":"+os.Getenv("PATH"))
	return &plugin.ClientConfig{
		HandshakeConfig:  handshake,
		Plugins:          map[string]plugin.Plugin{"base": connection{}, "driver": connection{}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Cmd:              command,
		// It would come after, and win.
		SkipHostEnv: true,
	}
}

func (w *world) dispense(config *plugin.ClientConfig) *agent {
	a := &agent{log: &logBuffer{}, reattached: config.Reattach != nil}
	config.Logger = hclog.New(&hclog.LoggerOptions{Name: "agent", Level: hclog.Trace, Output: a.log, JSONFormat: true})
	a.client = plugin.NewClient(config)
	w.agents.Lock()
	w.agents.all = append(w.agents.all, a)
	w.agents.Unlock()
	a.rpc = must(a.client.Client())
	a.base = base.NewBasePluginClient(must(a.rpc.Dispense("base")).(*grpc.ClientConn))
	a.driver = driver.NewDriverClient(must(a.rpc.Dispense("driver")).(*grpc.ClientConn))
	return a
}

// pid is the plugin's process.
func (a *agent) pid() int {
	return a.client.ReattachConfig().Pid
}

// end ends the plugin as an agent that stops does, and demands that it goes by itself.
func (a *agent) end() {
	pid := a.pid()
	_, _ = a.driver.Shutdown(soon(), &driver.ShutdownRequest{})
	killed := make(chan struct{})
	go func() {
		a.client.Kill()
		close(killed)
	}()
	eventually("the plugin's end", func() bool { return !runs(pid) })
	receive("the client's end", killed)
	// Of a process that is not its child the client sees the end only once init has reaped it, which some take seconds for.
	demand(a.reattached || !strings.Contains(a.log.text(), "failed to exit gracefully"), "it had to be killed")
}

// runs tells whether a process is there and is more than a memory of its exit code.
func runs(pid int) bool {
	fields := stat(pid)
	return len(fields) > 0 && fields[0] != "Z"
}

// stat is what the kernel says of a process, from its state on; nothing if there is none. proc(5), /proc/pid/stat.
func stat(pid int) []string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(line), ") ")
	return strings.Fields(rest)
}

// killPlugin kills the plugin as the kernel would, and waits until HashiCorp's client sees it.
func (a *agent) killPlugin() {
	demand(syscall.Kill(a.pid(), syscall.SIGKILL) == nil, "cannot kill %d", a.pid())
	eventually("the client sees the plugin's end", a.client.Exited)
}

// endAgents ends what a check left, also after a failure.
func (w *world) endAgents() {
	w.agents.Lock()
	defer w.agents.Unlock()
	for _, a := range w.agents.all {
		if !a.client.Exited() {
			a.client.Kill()
		}
	}
	w.agents.all = nil
}

// logsOfAgents is what plugins and clients logged in the check, to explain a failure.
func (w *world) logsOfAgents() string {
	w.agents.Lock()
	defer w.agents.Unlock()
	var text strings.Builder
	for _, a := range w.agents.all {
		text.WriteString(a.log.text())
	}
	return text.String()
}

// soon is a context for a call that must answer.
func soon() context.Context {
	return waitFor(limit)
}

// waitFor is a context for a call that may take longer.
func waitFor(most time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), most)
	time.AfterFunc(most, cancel)
	return ctx
}

// logBuffer keeps what the client logs.
type logBuffer struct {
	sync.Mutex
	buffer bytes.Buffer
}

func (b *logBuffer) Write(line []byte) (int, error) {
	b.Lock()
	defer b.Unlock()
	return b.buffer.Write(line)
}

func (b *logBuffer) text() string {
	b.Lock()
	defer b.Unlock()
	return b.buffer.String()
}

// line finds a log line by a part of its message.
func (b *logBuffer) line(part string) map[string]any {
	for _, line := range strings.Split(b.text(), "\n") {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) != nil {
			continue
		}
		if message, _ := fields["@message"].(string); strings.Contains(message, part) {
			return fields
		}
	}
	return nil
}

// agentReport is what an agent of its own process tells the one that will kill it.
type agentReport struct {
	Pid    int
	Socket string
	Handle []byte
}

// runAgent is a second process that plays an agent: it launches the plugin, starts the task that the order says, reports, and
// then waits to be killed with no chance to end anything.
func runAgent(w *world, order string) {
	var request driver.StartTaskRequest
	if err := proto.Unmarshal(must(os.ReadFile(order)), &request); err != nil {
		panic(err)
	}
	w.folder = os.Getenv("CONFORMANCE_FOLDER")
	a := w.launch()
	if w.socket != "" {
		demand(a.configure(w.socket, "") == nil, "the plugin's options are refused")
	}
	started := must(a.driver.StartTask(soon(), &request))
	where := a.client.ReattachConfig()
	report := agentReport{Pid: where.Pid, Socket: where.Addr.String(), Handle: must(proto.Marshal(started.Handle))}
	fmt.Println(string(must(json.Marshal(report))))
	select {}
}

// crashAgent runs an agent of its own process until it started the task, kills it with SIGKILL, and returns where its plugin
// is, which goes on without it, and the task's handle.
func (w *world) crashAgent(request *driver.StartTaskRequest) (*plugin.ReattachConfig, *driver.TaskHandle) {
	order := w.folder + "/order"
	demand(os.WriteFile(order, must(proto.Marshal(request)), 0o600) == nil, "cannot write %s", order)
	command := exec.Command(must(os.Executable()), "agent", "-plugin", w.plugin, "-socket", w.socket, "-order", order)
	command.Env = append(command.Environ(), "CONFORMANCE_FOLDER="+w.folder)
	command.Stderr = os.Stderr
	out := must(command.StdoutPipe())
	demand(command.Start() == nil, "cannot start an agent")
	var report agentReport
	err := json.NewDecoder(out).Decode(&report)
	_ = command.Process.Kill()
	_ = command.Wait()
	demand(err == nil, "the agent reports nothing: %v", err)
	var handle driver.TaskHandle
	demand(proto.Unmarshal(report.Handle, &handle) == nil, "the handle is no message")
	address := must(net.ResolveUnixAddr("unix", report.Socket))
	return &plugin.ReattachConfig{Protocol: plugin.ProtocolGRPC, ProtocolVersion: 2, Addr: address, Pid: report.Pid}, &handle
}

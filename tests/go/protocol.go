package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"pannier.example/conformance/wire/base"
	"pannier.example/conformance/wire/driver"
	"pannier.example/conformance/wire/structs"
)

// protocolChecks prove the protocol itself, against the example driver whose tasks are timers.
var protocolChecks = []check{
	{name: "a plugin comes up, says what it is and goes, three times in a row", run: cards},
	{name: "every service of go-plugin answers", run: ownServices},
	{name: "a schema of ours is one that HCL's own decoder takes", run: schemas},
	{name: "a task is started, watched, asked and ended through every call", run: everyCall},
	{name: "a failure says whether Nomad may try again", run: failures},
	{name: "three hundred waits leave room for a stop", run: manyWaits},
	{name: "a message of 20 MiB is taken", run: bigMessage},
	{name: "a plugin that is killed is seen to end, and its task recovers in the next", run: killedPlugin},
	{name: "an agent that is killed leaves a plugin to reattach to", run: killedAgent},
	{name: "what a plugin logs arrives with its level and its fields", run: logs},
	{name: "a client that asks for multiplexing is told no", run: multiplexing},
}

func timerTask(id string, env map[string]string) *driver.StartTaskRequest {
	return &driver.StartTaskRequest{Task: &driver.TaskConfig{Id: id, Name: "name of " + id, AllocId: "alloc", Env: env}}
}

var hour = map[string]string{"DURATION_MS": "3600000"}

func cards(w *world) {
	for range 3 {
		a := w.launch()
		info := must(a.base.PluginInfo(soon(), &base.PluginInfoRequest{}))
		equal("type", info.Type, base.PluginType_DRIVER)
		equal("name", info.Name, "timer")
		equal("API", strings.Join(info.PluginApiVersions, ","), "v0.1.0")
		must(a.base.ConfigSchema(soon(), &base.ConfigSchemaRequest{}))
		a.end()
	}
}

func ownServices(w *world) {
	a := w.launch()
	// Health. The broker's and stdio's streams were opened by the client itself, and are open.
	demand(a.rpc.Ping() == nil, "the plugin does not answer a ping")
	must(a.base.SetConfig(soon(), &base.SetConfigRequest{PluginApiVersion: "v0.1.0"}))
	must(a.base.SetConfig(soon(), &base.SetConfigRequest{
		PluginApiVersion: "v0.1.0",
		NomadConfig: &base.NomadConfig{Driver: &base.NomadDriverConfig{ClientMaxPort: 1, Topology: &base.ClientTopology{
			NodeIds: []uint32{0}, Distances: &base.ClientTopologySLIT{Dimension: 1, Values: []uint32{10}},
		}}},
	}))
	// The controller.
	a.end()
}

func schemas(w *world) {
	a := w.launch()
	response := must(a.driver.TaskConfigSchema(soon(), &driver.TaskConfigSchemaRequest{}))
	encode(response.Spec, `label = "x"`)
	encode(must(a.base.ConfigSchema(soon(), &base.ConfigSchemaRequest{})).Spec, ``)
	_, err := tryEncode(response.Spec, `unknown = 1`)
	demand(err != nil, "an unknown key is taken")
	a.end()
}

func everyCall(w *world) {
	a := w.launch()
	must(a.driver.Init(soon(), &driver.InitRequest{}))
	demand(must(a.driver.Capabilities(soon(), &driver.CapabilitiesRequest{})).Capabilities.Exec, "it executes")
	fingerprint := must(a.driver.Fingerprint(soon(), &driver.FingerprintRequest{}))
	first := must(fingerprint.Recv())
	equal("health", first.Health, driver.FingerprintResponse_HEALTHY)
	equal("attribute", first.Attributes["driver.timer.precision"].GetIntVal(), 1)
	events := must(a.driver.TaskEvents(soon(), &driver.TaskEventsRequest{}))
	// The stream counts once the driver answered; a start that overtakes it has no reader.
	must(events.Header())

	started := must(a.driver.StartTask(soon(), timerTask("t", hour)))
	demand(started.Handle.Version >= 1 && len(started.Handle.DriverState) > 0, "a handle to recover by")
	event := must(events.Recv())
	equal("event", event.Message+event.TaskId+event.AllocId, "Time starts.talloc")

	waits := [2]chan *driver.ExitResult{a.waiting("t"), a.waiting("t")}
	stats := must(a.driver.TaskStats(soon(), &driver.TaskStatsRequest{TaskId: "t", CollectionInterval: durationpb.New(time.Millisecond)}))
	for range 2 {
		sample := must(stats.Recv()).Stats
		demand(sample.Timestamp != nil && sample.AggResourceUsage.Cpu != nil, "a sample is whole: %v", sample)
	}
	inspected := must(a.driver.InspectTask(soon(), &driver.InspectTaskRequest{TaskId: "t"})).Task
	equal("state", inspected.State, driver.TaskState_RUNNING)
	demand(inspected.StartedAt != nil && inspected.CompletedAt != nil && inspected.Result != nil, "nothing Nomad reads is absent")
	execution := must(a.driver.ExecTask(soon(), &driver.ExecTaskRequest{TaskId: "t", Command: []string{"a", "b"}}))
	equal("exec", string(execution.Stdout), "a b")
	echo(a)

	_, err := a.driver.SignalTask(soon(), &driver.SignalTaskRequest{TaskId: "t", Signal: "SIGWINCH"})
	demand(err != nil, "a signal it does not know is an error")
	must(a.driver.SignalTask(soon(), &driver.SignalTaskRequest{TaskId: "t", Signal: "SIGTERM"}))
	for _, wait := range waits {
		equal("signal", receive("the task's end", wait).Signal, 15)
	}
	for {
		// The statistics end with the task.
		if _, err := stats.Recv(); err != nil {
			demand(errors.Is(err, io.EOF), "%v", err)
			break
		}
	}
	for range 2 {
		must(a.driver.StopTask(soon(), &driver.StopTaskRequest{TaskId: "t", Timeout: durationpb.New(time.Second)}))
		must(a.driver.DestroyTask(soon(), &driver.DestroyTaskRequest{TaskId: "t", Force: true}))
	}
	a.end()
}

// waiting waits for a task beside everything else.
func (a *agent) waiting(id string) chan *driver.ExitResult {
	result := make(chan *driver.ExitResult, 1)
	go func() {
		response, err := a.driver.WaitTask(soon(), &driver.WaitTaskRequest{TaskId: id})
		if err == nil {
			result <- response.Result
		}
	}()
	return result
}

func echo(a *agent) {
	stream := must(a.driver.ExecTaskStreaming(soon()))
	send := func(request *driver.ExecTaskStreamingRequest) { demand(stream.Send(request) == nil, "cannot send") }
	send(&driver.ExecTaskStreamingRequest{Setup: &driver.ExecTaskStreamingRequest_Setup{TaskId: "t", Command: []string{"cat"}}})
	send(&driver.ExecTaskStreamingRequest{})
	send(&driver.ExecTaskStreamingRequest{Stdin: &driver.ExecTaskStreamingIOOperation{Data: []byte("hello")}})
	send(&driver.ExecTaskStreamingRequest{Stdin: &driver.ExecTaskStreamingIOOperation{Close: true}})
	var output bytes.Buffer
	for {
		response := must(stream.Recv())
		output.Write(response.GetStdout().GetData())
		if response.Exited {
			equal("exit code", response.Result.ExitCode, 0)
			break
		}
	}
	_, err := stream.Recv()
	demand(errors.Is(err, io.EOF), "the stream ends after the exit: %v", err)
	// The heartbeat is an empty message and puts nothing into the output.
	equal("output", output.String(), "hello")
}

func failures(w *world) {
	a := w.launch()
	_, err := a.driver.StartTask(soon(), timerTask("t", map[string]string{"FAIL_RECOVERABLY": "busy"}))
	failure := status.Convert(err)
	equal("code", failure.Code(), codes.FailedPrecondition)
	equal("message", failure.Message(), "busy")
	detail, ok := failure.Details()[0].(*structs.RecoverableError)
	demand(ok && detail.Recoverable, "the first detail says that it may be tried again: %v", failure.Details())

	_, err = a.driver.CreateNetwork(soon(), &driver.CreateNetworkRequest{AllocId: "x"})
	equal("code", status.Code(err), codes.Unimplemented)
	_, err = a.driver.DestroyNetwork(soon(), &driver.DestroyNetworkRequest{AllocId: "x"})
	equal("code", status.Code(err), codes.Unimplemented)

	// A panic in a call is that call's failure and a line at level error.
	_, err = a.driver.StartTask(soon(), timerTask("t", map[string]string{"PANIC": "1"}))
	demand(err != nil, "a panic is a failure")
	eventually("the panic is logged", func() bool { return a.log.line("panicked: asked to panic") != nil })
	equal("level", a.log.line("panicked: asked to panic")["@level"], any("error"))
	must(a.driver.StartTask(soon(), timerTask("t", nil)))
	a.end()
}

func manyWaits(w *world) {
	a := w.launch()
	var waits []chan *driver.ExitResult
	for n := range 300 {
		id := fmt.Sprint("t", n)
		must(a.driver.StartTask(soon(), timerTask(id, hour)))
		waits = append(waits, a.waiting(id))
	}
	for n := range 300 {
		must(a.driver.StopTask(soon(), &driver.StopTaskRequest{TaskId: fmt.Sprint("t", n)}))
	}
	for _, wait := range waits {
		equal("signal", receive("a task's end", wait).Signal, 15)
	}
	a.end()
}

func bigMessage(w *world) {
	a := w.launch()
	template := strings.Repeat("x", 20<<20)
	started := must(a.driver.StartTask(soon(), timerTask("t", map[string]string{"TEMPLATE": template})))
	equal("length", len(started.Handle.Config.Env["TEMPLATE"]), len(template))
	a.end()
}

func killedPlugin(w *world) {
	a := w.launch()
	env := map[string]string{"DURATION_MS": "300", "EXIT_CODE": "7"}
	started := must(a.driver.StartTask(soon(), timerTask("t", env)))
	// A child with the plugin's own streams must not hide the plugin's end.
	must(a.driver.StartTask(soon(), timerTask("child", map[string]string{"LEAVE_CHILD": "10"})))
	failed := make(chan error, 1)
	go func() {
		_, err := a.driver.WaitTask(soon(), &driver.WaitTaskRequest{TaskId: "t"})
		failed <- err
	}()
	killed := time.Now()
	a.killPlugin()
	// Nomad waits three seconds for the plugin's end to be seen; later, it takes the error for the task's end.
	demand(time.Since(killed) < 3*time.Second, "it took %v to see the plugin's end", time.Since(killed))
	demand(receive("the wait's failure", failed) != nil, "a wait fails with its plugin")

	b := w.launch()
	must(b.driver.RecoverTask(soon(), &driver.RecoverTaskRequest{Handle: started.Handle}))
	equal("exit code", receive("the task's end", b.waiting("t")).ExitCode, 7)
	b.end()
}

func killedAgent(w *world) {
	where, handle := w.crashAgent(timerTask("t", hour))
	a := w.reattach(where)
	equal("process", a.pid(), where.Pid)
	demand(a.rpc.Ping() == nil, "the plugin does not answer a ping")
	equal("task", handle.Config.Id, "t")
	// Its log's pipe is broken now. It logs and works on.
	must(a.driver.StartTask(soon(), timerTask("printing", map[string]string{"PRINT": "1", "LEAVE_CHILD": "0"})))
	wait := a.waiting("t")
	must(a.driver.StopTask(soon(), &driver.StopTaskRequest{TaskId: "t"}))
	equal("signal", receive("the task's end", wait).Signal, 15)
	a.end()
}

func logs(w *world) {
	a := w.launch()
	eventually("the plugin's first line", func() bool { return a.log.line("serving") != nil })
	line := a.log.line("serving")
	equal("level", line["@level"], any("info"))
	demand(strings.Contains(fmt.Sprint(line["socket"]), w.folder), "its field arrives: %v", line)
	must(a.driver.StartTask(soon(), timerTask("t", map[string]string{"PRINT": "1"})))
	demand(!strings.Contains(a.log.text(), "xxxx"), "what is printed does not arrive")
	a.end()
}

func multiplexing(w *world) {
	config := w.clientConfig()
	config.GRPCBrokerMultiplex = true
	config.Logger = hclog.NewNullLogger()
	client := plugin.NewClient(config)
	_, err := client.Start()
	client.Kill()
	demand(errors.Is(err, plugin.ErrGRPCBrokerMuxNotSupported), "%v", err)
}

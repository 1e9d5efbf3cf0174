package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// This file knows Podman itself: what the driver did is judged by what Podman says, never by what the driver says.

// over is a client of an HTTP service on a unix socket.
func over(socket string) *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: limit}
}

// ask makes a call of Podman's and returns its status and body. What is sent is JSON, or bytes as they are.
func (w *world) ask(method, path string, body any) (int, []byte) {
	var content io.Reader
	kind := "application/json"
	switch body := body.(type) {
	case nil:
	case []byte:
		content, kind = bytes.NewReader(body), "application/x-tar"
	default:
		content = bytes.NewReader(must(json.Marshal(body)))
	}
	request := must(http.NewRequest(method, "http://podman/v4.0.0/libpod/"+path, content))
	request.Header.Set("Content-Type", kind)
	// A login that Podman does not need is no obstacle.
	request.Header.Set("X-Registry-Auth", registryAuth)
	response := must(over(w.socket).Do(request))
	defer response.Body.Close()
	return response.StatusCode, must(io.ReadAll(response.Body))
}

// tell makes a call of Podman's that must succeed.
func (w *world) tell(method, path string, body any) []byte {
	code, answer := w.ask(method, path, body)
	demand(code < 400, "%s %s: %d: %s", method, path, code, answer)
	return answer
}

// tree is JSON as it comes.
type tree map[string]any

// at walks down; nil where there is nothing.
func (t tree) at(path ...string) any {
	var here any = map[string]any(t)
	for _, name := range path {
		object, ok := here.(map[string]any)
		if !ok {
			return nil
		}
		here = object[name]
	}
	return here
}

// number is the whole number at a place; 0 where there is none.
func (t tree) number(path ...string) int64 {
	number, _ := t.at(path...).(float64)
	return int64(number)
}

// text is what stands at a place.
func (t tree) text(path ...string) string {
	if here := t.at(path...); here != nil {
		return fmt.Sprint(here)
	}
	return ""
}

// inspect is what Podman says of a task's container.
func (w *world) inspect(t *task) tree {
	var found tree
	path := "containers/" + t.container() + "/json"
	// Podman 4 answers 500 about a container whose first process goes while it looks.
	eventually("an inspection between two states of the container", func() bool {
		code, answer := w.ask("GET", path, nil)
		if code == http.StatusInternalServerError && strings.Contains(string(answer), "no such process") {
			return false
		}
		demand(code < 400, "GET %s: %d: %s", path, code, answer)
		demand(json.Unmarshal(answer, &found) == nil, "the inspection is no JSON")
		return true
	})
	return found
}

// containers is what Podman itself says is there.
func (w *world) containers() string {
	return string(w.tell("GET", "containers/json?all=true", nil))
}

// removeContainer removes what a failed check left.
func (w *world) removeContainer(name string) {
	w.ask("DELETE", "containers/"+name+"?force=true&timeout=0&ignore=true", nil)
}

// limits are those of a container that is not the driver's: what small hosts allow.
var limits = []map[string]any{{"type": "nofile", "soft": 1024, "hard": 4096}, {"type": "nproc", "soft": 4096, "hard": 8192}}

// tag makes an image like the run's, for the check alone, with a layer of its own: Podman loses names when several of one image
// change at a time, and layers when one image that has them goes while another comes.
func (w *world) tag(repository, tag string) string {
	var made tree
	answer := w.tell("POST", "containers/create", map[string]any{"image": w.image, "command": []string{"true"}, "r_limits": limits})
	demand(json.Unmarshal(answer, &made) == nil, "no container: %s", answer)
	defer w.removeContainer(made.text("Id"))
	name := repository + ":" + tag
	var own bytes.Buffer
	content := tar.NewWriter(&own)
	demand(content.WriteHeader(&tar.Header{Name: "name", Mode: 0o644, Size: int64(len(name))}) == nil, "cannot write an archive")
	must(content.Write([]byte(name)))
	demand(content.Close() == nil, "cannot write an archive")
	w.tell("PUT", "containers/"+made.text("Id")+"/archive?path=%2F", own.Bytes())
	w.tell("POST", "commit?container="+made.text("Id")+"&repo="+url.QueryEscape(repository)+"&tag="+tag, nil)
	w.atEnd(func() { w.untag(name) })
	return name
}

// writeProgram makes an executable file. Another process writes it: no child of this one can then hold it open for writing, which
// would forbid to run it.
func writeProgram(path, text string) {
	command := exec.Command("install", "-m", "755", "/dev/stdin", path)
	command.Stdin = strings.NewReader(text)
	demand(command.Run() == nil, "cannot write %s", path)
}

// untag takes the name of [world.tag] from its image, which goes with it.
func (w *world) untag(name string) {
	w.ask("DELETE", "images/"+url.PathEscape(name)+"?force=false", nil)
}

// hasImage tells whether Podman has an image of a name.
func (w *world) hasImage(name string) bool {
	code, _ := w.ask("GET", "images/"+url.PathEscape(name)+"/exists", nil)
	return code == http.StatusNoContent
}

// servicePid is the process that listens on Podman's socket.
func (w *world) servicePid() int {
	conn := must(net.Dial("unix", w.socket)).(*net.UnixConn)
	defer conn.Close()
	var peer *syscall.Ucred
	var failure error
	raw := must(conn.SyscallConn())
	demand(raw.Control(func(fd uintptr) {
		peer, failure = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}) == nil && failure == nil, "who listens on %s: %v", w.socket, failure)
	return int(peer.Pid)
}

// service is a Podman service of the check's own, on the storage of the run's, which it may kill.
type service struct {
	command func() *exec.Cmd
	socket  string
	process *exec.Cmd
}

// ownService starts a second service beside the run's: same program, same options, same mounts, another socket.
func (w *world) ownService() *service {
	pid := w.servicePid()
	line := commandLine(pid)
	socket := filepath.Join(w.folder, "podman.sock")
	found := false
	for n, argument := range line {
		if argument == "unix://"+w.socket {
			line[n], found = "unix://"+socket, true
		}
	}
	if !found {
		skip("the Podman service was not started with its socket's path: %q", line)
	}
	s := &service{command: func() *exec.Cmd { return near(pid, line...) }, socket: socket}
	s.start()
	w.atEnd(s.kill)
	return s
}

// commandLine is what a process was started with.
func commandLine(pid int) []string {
	line := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))))
	return strings.Split(strings.TrimSuffix(line, "\x00"), "\x00")
}

// near is a command with the mounts and the environment of a process.
func near(pid int, arguments ...string) *exec.Cmd {
	command := exec.Command("nsenter", append([]string{fmt.Sprintf("--mount=/proc/%d/ns/mnt", pid), "--"}, arguments...)...)
	command.Env = strings.Split(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)))), "\x00")
	return command
}

// start starts the service and waits until it answers.
func (s *service) start() {
	_ = os.Remove(s.socket)
	s.process = s.command()
	demand(s.process.Start() == nil, "cannot start a Podman service")
	client := over(s.socket)
	eventually("the Podman service answers", func() bool {
		response, err := client.Get("http://podman/_ping")
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// kill kills the service as a crash would. Containers go on.
func (s *service) kill() {
	if s.process == nil {
		return
	}
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
	s.process = nil
}

// read makes a call of Podman's and reads its answer.
func (w *world) read(path string, into any) {
	demand(json.Unmarshal(w.tell("GET", path, nil), into) == nil, "GET %s is no JSON", path)
}

// podmanExec runs a command in a task's container by Podman's own API and returns its output.
func (w *world) podmanExec(t *task, command ...string) (string, error) {
	code, answer := w.ask("POST", "containers/"+t.container()+"/exec", map[string]any{"Cmd": command, "AttachStdout": true, "Tty": true})
	var made tree
	if err := json.Unmarshal(answer, &made); err != nil || code >= 400 {
		return "", fmt.Errorf("%d: %s", code, answer)
	}
	request := must(http.NewRequest("POST", "http://podman/v4.0.0/libpod/exec/"+made.text("Id")+"/start", strings.NewReader(`{"Detach":false,"Tty":true}`)))
	request.Header.Set("Content-Type", "application/json")
	response, err := over(w.socket).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	out, err := io.ReadAll(response.Body)
	return string(out), err
}

package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The one user of a registry that asks for one, and the hash of the password.
const (
	registryUser     = "nomad"
	registryPassword = "correct horse"
	registryHash     = "$2b$04$GCrDoUKGUmtHS9ljSKQx4O9iI3DrDn9qWTuRj7Lckh3TXGEiVkI6W"
)

// registryAuth is that user as Podman's API takes it.
var registryAuth = base64.URLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"username":%q,"password":%q}`, registryUser, registryPassword)))

// registry is the distribution project's, on a port of its own.
type registry struct {
	process *exec.Cmd
	address string
}

// openRegistry gives images to everybody.
func (w *world) openRegistry() *registry {
	w.making.Lock()
	defer w.making.Unlock()
	if w.open == nil {
		w.open = w.startRegistry("open", "")
	}
	return w.open
}

// closedRegistry gives images to the user alone.
func (w *world) closedRegistry() *registry {
	w.making.Lock()
	defer w.making.Unlock()
	if w.closed == nil {
		folder := filepath.Join(w.root, "closed")
		users := filepath.Join(folder, "htpasswd")
		demand(os.MkdirAll(folder, 0o755) == nil, "cannot make %s", folder)
		demand(os.WriteFile(users, []byte(registryUser+":"+registryHash+"\n"), 0o600) == nil, "cannot write %s", users)
		w.closed = w.startRegistry("closed", fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", users))
	}
	return w.closed
}

func (w *world) startRegistry(name, auth string) *registry {
	program, err := exec.LookPath("registry")
	if err != nil {
		skip("no registry; go install github.com/distribution/distribution/v3/cmd/registry@v3.0.0")
	}
	folder := filepath.Join(w.root, name)
	config := filepath.Join(folder, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info, formatter: json}\n"+
		"storage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: \"127.0.0.1:0\"}\n%s", folder, auth)
	demand(os.MkdirAll(folder, 0o755) == nil && os.WriteFile(config, []byte(text), 0o600) == nil, "cannot write %s", config)
	r := &registry{process: exec.Command(program, "serve", config)}
	r.process.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	log := must(r.process.StderrPipe())
	demand(r.process.Start() == nil, "cannot start a registry")
	lines := bufio.NewScanner(log)
	for r.address == "" && lines.Scan() {
		if _, rest, found := strings.Cut(lines.Text(), "listening on "); found {
			r.address, _, _ = strings.Cut(rest, `"`)
			r.address, _, _ = strings.Cut(r.address, ",")
		}
	}
	demand(r.address != "", "the registry does not listen")
	go func() {
		// Somebody must go on reading what it logs.
		for lines.Scan() {
		}
	}()
	return r
}

func (r *registry) end() {
	_ = r.process.Process.Kill()
	_ = r.process.Wait()
}

// push gives the run's image to a registry under a name of its own, which Podman itself does not have afterwards.
func (w *world) push(r *registry, repository string) string {
	name := w.tag(r.address+"/"+repository, "1")
	w.tell("POST", "images/"+url.PathEscape(name)+"/push?tlsVerify=false&destination="+url.QueryEscape(name), nil)
	w.untag(name)
	demand(!w.hasImage(name), "%s is still there", name)
	return name
}

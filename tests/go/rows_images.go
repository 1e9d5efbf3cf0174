package main

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/status"
)

// imageRows are the rows about coming by an image: from a real registry, from archives, from the local storage.
var imageRows = []check{
	{name: "Pull (what is missing is pulled once, what is there is not)", run: rowPull},
	{name: "Pull, force_pull (asks the registry again)", run: rowForcePull},
	{name: "Pull_Timeout (a registry that does not answer: error, soon, another try may help)", run: rowPullTimeout},
	{name: "Pull, many tasks at once", run: rowPullMany},
	{name: "createImage (short, long, docker://, missing)", run: rowCreateImage},
	{name: "createImagePlatform (arch)", run: rowPlatform},
	{name: "createImageArchives (oci-archive, docker-archive)", run: rowArchives},
	{name: "createImageArchivesHTTP (by URL)", run: rowArchivesHTTP},
	{name: "loadImageFromURL_httpError (error: the status)", run: rowArchiveErrors},
	{name: "parseImage (table of names)", run: rowImageNames},
	{name: "AuthBasic (credentials of the task; wrong ones: error, for good)", run: rowAuthBasic},
	{name: "AuthFileStatic (config.json)", run: rowAuthFile},
	{name: "AuthHelper (docker-credential-...)", run: rowAuthHelper},
	{name: "Auth, auth_soft_fail (goes on without)", run: rowAuthSoftFail},
}

// insecure says that the registry speaks HTTP, as those of a test do.
const insecure = "auth {\n tls_verify = false\n}\n"

// ran demands that a task of an image runs.
func (w *world) ran(a *agent, o order) {
	o.script = "echo ran"
	equal("output", w.inside(a, o), "ran")
}

// unique is a repository of the check's own.
func unique(what string) string {
	return fmt.Sprintf("%s/t%d", what, time.Now().UnixNano())
}

func rowPull(w *world) {
	a := w.launchPodman()
	name := w.push(w.openRegistry(), unique("pull"))
	w.atEnd(func() { w.untag(name) })
	w.ran(a, order{image: name, options: insecure})
	demand(w.hasImage(name), "%s is not there", name)
	// Nothing is asked of a registry for what is there: this one is not.
	local := w.tag("127.0.0.1:1/"+unique("local"), "1")
	w.ran(a, order{image: local, options: insecure})
	missing := w.openRegistry().address + "/" + unique("missing") + ":1"
	err := w.refused(a, order{image: missing, options: insecure}, missing)
	demand(!recoverable(err), "an image that the registry does not have is no reason to try again: %v", err)
}

func rowForcePull(w *world) {
	a := w.launchPodman()
	name := w.push(w.openRegistry(), unique("force"))
	w.atEnd(func() { w.untag(name) })
	w.ran(a, order{image: name, options: insecure + "force_pull = true"})
	local := w.tag("127.0.0.1:1/"+unique("force"), "1")
	err := w.refused(a, order{image: local, options: insecure + "force_pull = true"}, local)
	demand(recoverable(err), "a registry that is away may come back: %v", err)
}

func rowPullTimeout(w *world) {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	defer listener.Close()
	a := w.launchPodman()
	name := listener.Addr().String() + "/" + unique("silent") + ":1"
	err := w.refused(a, order{image: name, options: insecure + `image_pull_timeout = "1s"`}, name)
	demand(recoverable(err), "another try may help: %v", err)
}

func rowPullMany(w *world) {
	a := w.launchPodman()
	name := w.push(w.openRegistry(), unique("many"))
	w.atEnd(func() { w.untag(name) })
	failures := make(chan error, 3)
	var tasks []*task
	for range cap(failures) {
		t := w.order(a, order{script: "true", image: name, options: insecure})
		tasks = append(tasks, t)
		go func() {
			_, err := a.driver.StartTask(soon(), t.request)
			failures <- err
		}()
	}
	for range tasks {
		err := receive("a start", failures)
		demand(err == nil, "%v", err)
	}
	for _, t := range tasks {
		equal("exit code", receive("its end", a.waiting(t.id)).ExitCode, 0)
		w.destroy(a, t)
	}
}

func rowCreateImage(w *world) {
	a := w.launchPodman()
	long := w.tag("localhost/"+unique("create"), "2")
	w.ran(a, order{image: long})
	w.ran(a, order{image: strings.TrimPrefix(long, "localhost/")})
	w.ran(a, order{image: "docker://" + long})
	for _, missing := range []string{"localhost/" + unique("create") + ":1", "oci-archive:/nowhere/image.tar"} {
		err := w.refused(a, order{image: missing}, strings.TrimPrefix(missing, "oci-archive:"))
		demand(!recoverable(err), "%s: nothing comes of another try: %v", missing, err)
	}
}

func rowPlatform(w *world) {
	a := w.launchPodman()
	name := w.push(w.openRegistry(), unique("platform"))
	w.atEnd(func() { w.untag(name) })
	w.ran(a, order{image: name, options: insecure + fmt.Sprintf("arch = %q\nos = \"linux\"", runtime.GOARCH)})
	var image tree
	w.read("images/"+url.PathEscape(name)+"/json", &image)
	equal("architecture", image.text("Architecture"), runtime.GOARCH)
}

// archive writes the run's image under a name of its own into a file; Podman does not have the name afterwards.
func (w *world) archive(format string) (path, name string) {
	name = w.tag("localhost/"+unique(format), "1")
	path = filepath.Join(w.folder, format+".tar")
	content := w.tell("GET", "images/"+url.PathEscape(name)+"/get?format="+format, nil)
	demand(os.WriteFile(path, content, 0o644) == nil, "cannot write %s", path)
	w.untag(name)
	return path, name
}

func rowArchives(w *world) {
	a := w.launchPodman()
	for _, format := range []string{"oci-archive", "docker-archive"} {
		path, name := w.archive(format)
		w.ran(a, order{image: format + ":" + path})
		w.untag(name)
	}
}

func rowArchivesHTTP(w *world) {
	a := w.launchPodman()
	path, name := w.archive("docker-archive")
	var asked atomic.Int32
	server := http.Server{Handler: http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		asked.Add(1)
		http.ServeFile(response, request, path)
	})}
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	w.ran(a, order{image: fmt.Sprintf("docker-archive:http://%s/image.tar", listener.Addr())})
	demand(asked.Load() > 0, "nobody asked for the archive")
	w.untag(name)
}

func rowArchiveErrors(w *world) {
	a := w.launchPodman()
	server := http.Server{Handler: http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		if strings.Contains(request.URL.Path, "busy") {
			response.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		http.NotFound(response, request)
	})}
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	address := "docker-archive:http://" + listener.Addr().String()
	err := w.refused(a, order{image: address + "/absent.tar"}, "404", "/absent.tar")
	demand(!recoverable(err), "an archive that is not there is no reason to try again: %v", err)
	err = w.refused(a, order{image: address + "/busy.tar"}, "503")
	demand(recoverable(err), "a server that is busy may be asked again: %v", err)
	broken := filepath.Join(w.folder, "broken.tar")
	demand(os.WriteFile(broken, []byte("no archive"), 0o644) == nil, "cannot write %s", broken)
	w.refused(a, order{image: "docker-archive:" + broken}, broken)
}

// rowImageNames asks for names that no registry is needed to judge.
func rowImageNames(w *world) {
	a := w.launchPodman()
	repository := "localhost/" + unique("names")
	latest := w.tag(repository, "latest")
	w.ran(a, order{image: repository})
	w.ran(a, order{image: latest})
	var image tree
	w.read("images/"+url.PathEscape(latest)+"/json", &image)
	w.ran(a, order{image: image.text("Id")})
	for _, bad := range []string{"UPPER/case:1", "name:bad tag", "ftp://example/x", "docker://", "http://"} {
		_, err := a.driver.StartTask(soon(), w.order(a, order{image: bad}).request)
		demand(err != nil && !recoverable(err), "%s is taken: %v", bad, err)
		contains("the error", status.Convert(err).Message(), bad)
	}
}

// login is a task's block of credentials.
func login(password string) string {
	return fmt.Sprintf("auth {\n username = %q\n password = %q\n tls_verify = false\n}\n", registryUser, password)
}

func rowAuthBasic(w *world) {
	a := w.launchPodman()
	name := w.push(w.closedRegistry(), unique("basic"))
	w.atEnd(func() { w.untag(name) })
	for _, bad := range []string{insecure, login("wrong")} {
		err := w.refused(a, order{image: name, options: bad}, name)
		demand(!recoverable(err), "credentials that are wrong stay wrong: %v", err)
		demand(!strings.Contains(w.logsOfAgents(), "wrong\""), "the password is in the log")
	}
	w.ran(a, order{image: name, options: login(registryPassword)})
	demand(!strings.Contains(w.logsOfAgents(), registryPassword), "the password is in the log")
}

func rowAuthFile(w *world) {
	name := w.push(w.closedRegistry(), unique("file"))
	w.atEnd(func() { w.untag(name) })
	file := filepath.Join(w.folder, "config.json")
	auth := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + registryPassword))
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, w.closedRegistry().address, auth)
	demand(os.WriteFile(file, []byte(text), 0o600) == nil, "cannot write %s", file)
	a := w.launchWith(fmt.Sprintf("auth {\n config = %q\n}", file))
	w.ran(a, order{image: name, options: insecure})
}

func rowAuthHelper(w *world) {
	name := w.push(w.closedRegistry(), unique("helper"))
	w.atEnd(func() { w.untag(name) })
	program := filepath.Join(w.folder, "docker-credential-conformance")
	text := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\necho '{\"Username\":%q,\"Secret\":%q}'\n", registryUser, registryPassword)
	writeProgram(program, text)
	w.path = w.folder
	a := w.launchWith("auth {\n helper = \"conformance\"\n}")
	w.ran(a, order{image: name, options: insecure})
}

func rowAuthSoftFail(w *world) {
	name := w.push(w.openRegistry(), unique("soft"))
	w.atEnd(func() { w.untag(name) })
	a := w.launchWith("auth {\n helper = \"that-does-not-exist\"\n}")
	w.refused(a, order{image: name, options: insecure}, name)
	w.ran(a, order{image: name, options: insecure + "auth_soft_fail = true"})
}

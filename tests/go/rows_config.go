package main

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/status"

	"pannier.example/conformance/wire/base"
	"pannier.example/conformance/wire/driver"
)

// absent is an image that no Podman has, so that a task with it is refused for this alone, after all its options were read.
const absent = "localhost/absent:1"

// configRows are the rows about options as text. A good text is taken by the schema, and the start fails only at the image; a bad
// one is refused by the schema or by the start, which names the option.
var configRows = []check{
	texts("Config_Ports", `ports = ["http"]`, `ports = "http" `, `port_map = [{ http = "many" }]`),
	texts("Config_Logging", "logging {\n driver = \"nomad\"\n}", "logging {\n driver = \"carrier-pigeon\"\n}"),
	texts("Config_Labels", `labels = [{ a = "b", "c.d" = "e" }]`, `labels = "a"`),
	texts("Config_ForcePull", `force_pull = false`, `force_pull = "perhaps"`),
	texts("Config_Platform", "arch = \"amd64\"\nos = \"linux\"\nvariant = \"\"", `arch = []`),
	texts("Config_CPUHardLimit", "cpu_hard_limit = true\ncpu_cfs_period = 50000", `cpu_cfs_period = 9000000`, `cpu_hard_limit = "perhaps"`),
	texts("Config_ImagePullTimeout", `image_pull_timeout = "10m"`, `image_pull_timeout = "soon"`),
	texts("Config_ExtraHosts", `extra_hosts = ["a.example:192.0.2.1", "b.example:2001:db8::1"]`, `extra_hosts = { a = "b" }`),
	texts("Config_PodmanOOMScoreAdj", `oom_score_adj = -500`, `oom_score_adj = 5000`),
	texts("Config_IPCMode", `ipc_mode = "private"`, `ipc_mode = "sideways"`),
	texts("Config, sizes with a unit and without", "memory_reservation = \"16777216\"\nshm_size = \"1g\"", `memory_reservation = "much"`),
	texts("Config, an option that does not exist", "", `nonsense = 1`),
	{name: "PodmanSocketDefaultIfNotGiven", run: rowDefaultSocket},
	{name: "PluginConfig_Parsing", run: rowPluginConfig},
	{name: "namedSocketIsDefault", run: func(w *world) {
		rowSockets(w, "default", []string{"default", "other"}, "driver.podman.socketName", "driver.podman.other.socketName")
	}},
	{name: "unnamedSocketIsRenamedToDefault", run: func(w *world) { rowSockets(w, "", []string{""}, "driver.podman.socketName") }},
	{name: "namedSocketBecomesDefaultSocket", run: func(w *world) {
		rowSockets(w, "podmanSock", []string{"podmanSock"}, "driver.podman.socketName")
	}},
	{name: "socketNameIsCleanedInAttributes", run: func(w *world) {
		rowSockets(w, "default", []string{"default", "a socket with spaces"}, "driver.podman.a_socket_with_spaces.socketName")
	}},
	{name: "a socket that the task names is used, one that is not there is named", run: rowSocketOfTask},
}

// texts is a check of good and bad texts of options.
func texts(name, good string, bad ...string) check {
	return check{name: name + " (read; bad values: error)", run: func(w *world) {
		a := w.launchPodman()
		change := func(c *driver.TaskConfig) {
			c.Resources.Ports = []*driver.PortMapping{{Label: "http", Value: 4000, HostIp: "127.0.0.1"}}
		}
		w.refused(a, order{image: absent, options: good, change: change}, absent)
		spec := must(a.driver.TaskConfigSchema(soon(), &driver.TaskConfigSchemaRequest{})).Spec
		for _, text := range bad {
			if _, err := tryEncode(spec, "image = \"x\"\n"+text); err != nil {
				continue
			}
			w.refused(a, order{image: absent, options: text, change: change}, strings.Fields(text)[0])
		}
	}}
}

func rowDefaultSocket(w *world) {
	a := w.launch()
	demand(a.configure("", "") == nil, "nothing said is no mistake")
	first := must(must(a.driver.Fingerprint(soon(), &driver.FingerprintRequest{})).Recv())
	// Whether Podman listens there is the host's matter.
	if socket := first.Attributes["driver.podman.socket"].GetStringVal(); socket != "" {
		contains("socket", socket, "/run/podman/podman.sock")
	}
}

func rowPluginConfig(w *world) {
	a := w.launch()
	good := fmt.Sprintf(`
		auth {
			config = "/etc/auth.json"
			helper = "ecr"
		}
		volumes {
			enabled     = true
			selinuxlabel = "z"
		}
		gc {
			container = false
		}
		recover_stopped = true
		extra_labels    = ["job_*"]
		logging {
			driver = "nomad"
		}
		networking {
			default_rootless_mode = "pasta"
		}
		socket {
			name        = "one"
			socket_path = "unix://%[1]s"
		}
		socket {
			name        = "two"
			socket_path = "unix://%[1]s"
		}
		disable_log_collection = true
		client_http_timeout    = "30s"
		dns_servers            = ["192.0.2.1"]
	`, w.socket)
	demand(a.configure("", good) == nil, "good options are refused: %v", a.configure("", good))
	spec := must(a.base.ConfigSchema(soon(), &base.ConfigSchemaRequest{})).Spec
	for _, bad := range []string{`client_http_timeout = "soon"`, `dns_servers = ["nowhere"]`, "socket {\n name = \"x\"\n}", "logging {\n driver = \"pigeon\"\n}"} {
		msgpack, err := tryEncode(spec, bad)
		if err != nil {
			continue
		}
		_, err = a.base.SetConfig(soon(), &base.SetConfigRequest{MsgpackConfig: msgpack, PluginApiVersion: "v0.1.0"})
		contains("the error", status.Convert(err).Message(), strings.Fields(bad)[0])
	}
	both := fmt.Sprintf("socket_path = %[1]q\nsocket {\n name = \"x\"\n socket_path = %[1]q\n}", "unix://"+w.socket)
	demand(w.launch().configure("", both) != nil, "socket_path beside socket blocks is taken")
}

// rowSockets configures sockets by name; the first is the default one, and each attribute must be there.
func rowSockets(w *world, name string, sockets []string, attributes ...string) {
	a := w.launch()
	var options strings.Builder
	for _, socket := range sockets {
		fmt.Fprintf(&options, "socket {\n name = %q\n socket_path = %q\n}\n", socket, "unix://"+w.socket)
	}
	err := a.configure("", options.String())
	demand(err == nil, "refused: %v", err)
	first := must(must(a.driver.Fingerprint(soon(), &driver.FingerprintRequest{})).Recv())
	equal("health", first.Health, driver.FingerprintResponse_HEALTHY)
	for _, attribute := range attributes {
		demand(first.Attributes[attribute] != nil, "no %s in %v", attribute, first.Attributes)
	}
	equal("the default", first.Attributes["driver.podman.defaultPodman"].GetBoolVal(), true)
	want := name
	if want == "" {
		want = "default"
	}
	equal("its name", first.Attributes["driver.podman.socketName"].GetStringVal(), want)
	equal("output", w.inside(a, order{script: "echo ran"}), "ran")
}

func rowSocketOfTask(w *world) {
	a := w.launch()
	second := fmt.Sprintf("socket {\n name = \"default\"\n socket_path = \"unix://%s/nobody.sock\"\n}\nsocket {\n name = \"real\"\n socket_path = \"unix://%s\"\n}",
		w.folder, w.socket)
	demand(a.configure("", second) == nil, "two sockets are refused")
	first := must(must(a.driver.Fingerprint(soon(), &driver.FingerprintRequest{})).Recv())
	equal("health", first.Health, driver.FingerprintResponse_UNHEALTHY)
	equal("output", w.inside(a, order{script: "echo ran", options: `socket = "real"`}), "ran")
	w.refused(a, order{options: `socket = "unknown"`}, "unknown")
}

package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"pannier.example/conformance/wire/driver"
)

// networkRows are the rows about ports, names and networks.
var networkRows = []check{
	{name: "setExtraHosts (/etc/hosts)", run: func(w *world) {
		options := `extra_hosts = ["one.example:192.0.2.1", "two.example:192.0.2.2"]`
		out := w.inside(w.launchPodman(), order{script: "cat /etc/hosts", options: options})
		for number, name := range map[int]string{1: "one.example", 2: "two.example"} {
			found := false
			for _, line := range strings.Split(out, "\n") {
				fields := strings.Fields(line)
				found = found || len(fields) > 1 && fields[0] == fmt.Sprint("192.0.2.", number) && strings.Contains(line, name)
			}
			demand(found, "no line for %s in %s", name, out)
		}
	}},
	{name: "DNS (servers, searches, options in resolv.conf)", run: rowDNS},
	{name: "DNS, dns_servers of the plugin", run: func(w *world) {
		out := w.inside(w.launchWith(`dns_servers = ["192.0.2.77"]`), order{script: "cat /etc/resolv.conf", options: `network_mode = "bridge"`})
		contains("resolv.conf", out, "nameserver 192.0.2.77")
	}},
	{name: "Ports (published, TCP and UDP; told as network)", run: rowPorts},
	{name: "PortMap (the old form)", run: rowPortMap},
	{name: "Ports_MissingFromGroup (error)", run: func(w *world) {
		change := func(c *driver.TaskConfig) { c.Resources.Ports = []*driver.PortMapping{{Label: "other", Value: 4000}} }
		w.refused(w.launchPodman(), order{options: bridged + `ports = ["http"]`, change: change}, `"http"`, "not found")
	}},
	{name: "Ports_MissingDriverConfig (error)", run: func(w *world) {
		w.refused(w.launchPodman(), order{options: bridged + `ports = ["http"]`}, "port", "network")
	}},
	{name: "Ports_WithPortMap (error)", run: func(w *world) {
		change := func(c *driver.TaskConfig) { c.Resources.Ports = []*driver.PortMapping{{Label: "http", Value: 4000}} }
		options := bridged + "ports = [\"http\"]\nport_map = [{ http = 8080 }]"
		w.refused(w.launchPodman(), order{options: options, change: change}, "port_map")
	}},
	{name: "NetworkModes (host, none, bridge; absent network: error)", run: rowNetworkModes},
	{name: "NetworkModes, slirp4netns", run: func(w *world) { rowOtherMode(w, "slirp4netns") }},
	{name: "NetworkModes, pasta", run: func(w *world) { rowOtherMode(w, "pasta") }},
	{name: "NetworkMode_Container (the namespace of a container)", run: func(w *world) { rowJoin(w, "container:first-%s") }},
	{name: "NetworkMode_Task (the namespace of another task)", run: func(w *world) { rowJoin(w, "task:first") }},
	{name: "NetworkMode, the group's namespace", run: rowGroupNetwork},
	{name: "CustomNetwork (its address, a fixed one, errors)", run: rowCustomNetwork},
	{name: "ResolveContainerIP (the address told is the container's)", run: func(w *world) {
		a := w.launchPodman()
		t := w.prepare(a, forever, `network_mode = "bridge"`)
		network := must(a.driver.StartTask(soon(), t.request)).NetworkOverride
		demand(network != nil && net.ParseIP(network.Addr) != nil, "no address is told: %v", network)
		equal("address", network.Addr, w.address(t))
		equal("nothing is advertised unasked", network.AutoAdvertise, false)
		a.stop(t, "SIGKILL", 1)
		w.destroy(a, t)
	}},
}

// bridged puts a task into Podman's bridge.
const bridged = "network_mode = \"bridge\"\n"

func rowDNS(w *world) {
	change := func(c *driver.TaskConfig) {
		c.Dns = &driver.DNSConfig{
			Servers: []string{"192.0.2.53", "192.0.2.54"}, Searches: []string{"inner.example"}, Options: []string{"ndots:2"},
		}
	}
	out := w.inside(w.launchPodman(), order{script: "cat /etc/resolv.conf", options: bridged, change: change})
	contains("resolv.conf", out, "nameserver 192.0.2.53", "nameserver 192.0.2.54", "search inner.example", "options ndots:2")
}

// freePort is one that nobody listens on, below those that the kernel gives out by itself.
func freePort() int32 {
	for {
		port := 20000 + rand.Int32N(10000)
		listener, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err == nil {
			_ = listener.Close()
			return port
		}
	}
}

// serving is a script that answers HTTP on a port.
func serving(port int) string {
	return fmt.Sprintf("mkdir /tmp/www; echo served > /tmp/www/index.html; httpd -p %d -h /tmp/www; %s", port, forever)
}

// answers demands that an address answers as [serving] does.
func answers(address string) {
	eventually("http://"+address+" answers", func() bool {
		response, err := http.Get("http://" + address)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return string(body) == "served\n"
	})
}

// address is the container's, as Podman says.
func (w *world) address(t *task) string {
	found := w.inspect(t)
	if address := found.text("NetworkSettings", "IPAddress"); address != "" {
		return address
	}
	networks, _ := found.at("NetworkSettings", "Networks").(map[string]any)
	for _, network := range networks {
		if address := tree(network.(map[string]any)).text("IPAddress"); address != "" {
			return address
		}
	}
	return ""
}

func rowPorts(w *world) {
	a := w.launchPodman()
	web, same := freePort(), freePort()
	change := func(c *driver.TaskConfig) {
		c.Resources.Ports = []*driver.PortMapping{
			{Label: "web", Value: web, To: 8080, HostIp: "127.0.0.1"}, {Label: "same", Value: same, HostIp: "127.0.0.1"},
			{Label: "unused", Value: freePort(), HostIp: "127.0.0.1"},
		}
	}
	t := w.order(a, order{script: serving(8080), options: bridged + `ports = ["web", "same"]`, change: change})
	network := must(a.driver.StartTask(soon(), t.request)).NetworkOverride
	equal("port told", network.PortMap["web"], 8080)
	bindings, _ := w.inspect(t).at("HostConfig", "PortBindings").(map[string]any)
	for _, port := range []string{"8080/tcp", "8080/udp", fmt.Sprintf("%d/tcp", same), fmt.Sprintf("%d/udp", same)} {
		demand(bindings[port] != nil, "%s is not published: %v", port, bindings)
	}
	equal("published", len(bindings), 4)
	answers(fmt.Sprint("127.0.0.1:", web))
	answers(w.address(t) + ":8080")
	a.stop(t, "SIGKILL", 1)
	w.destroy(a, t)
}

func rowPortMap(w *world) {
	a := w.launchPodman()
	web := freePort()
	change := func(c *driver.TaskConfig) {
		c.Resources.AllocatedResources.Networks = []*driver.NetworkResource{
			{Ip: "127.0.0.1", ReservedPorts: []*driver.NetworkPort{{Label: "web", Value: web}}},
		}
	}
	script := "echo $NOMAD_PORT_web > /alloc/data/out; " + serving(8080)
	t, _ := w.begin(a, order{script: script, options: bridged + `port_map = [{ web = 8080 }]`, change: change})
	answers(fmt.Sprint("127.0.0.1:", web))
	equal("told to the program", t.data("out"), "8080\n")
	a.stop(t, "SIGKILL", 1)
	w.destroy(a, t)
}

func rowNetworkModes(w *world) {
	a := w.launchPodman()
	host := must(os.Readlink("/proc/self/ns/net"))
	for mode, want := range map[string]string{"host": "same", "none": "lo", "bridge": "eth0 lo"} {
		options := fmt.Sprintf("network_mode = %q", mode)
		out := w.inside(a, order{script: "readlink /proc/self/ns/net; ls /sys/class/net; ls /proc/sys/net/ipv4/conf", options: options})
		if mode == "host" {
			contains("host", out, host)
			continue
		}
		demand(!strings.Contains(out, host), "%s is the host's namespace", mode)
		contains(mode, out, strings.Fields(want)...)
	}
	w.refused(a, order{options: `network_mode = "no-such-network"`}, "no-such-network")
}

func rowOtherMode(w *world, mode string) {
	if _, err := exec.LookPath(mode); err != nil {
		skip("%s is not installed", mode)
	}
	out := w.inside(w.launchPodman(), order{script: "ls /proc/sys/net/ipv4/conf", options: fmt.Sprintf("network_mode = %q", mode)})
	contains("interfaces", out, "tap0")
}

func rowJoin(w *world, mode string) {
	a := w.launchPodman()
	first, _ := w.begin(a, order{name: "first", script: "readlink /proc/self/ns/net > /alloc/data/first; " + forever, options: `network_mode = "none"`})
	eventually("it is up", func() bool { return strings.HasSuffix(first.data("first"), "\n") })
	if strings.Contains(mode, "%s") {
		mode = fmt.Sprintf(mode, first.alloc)
	}
	second := order{name: "second", alloc: first.alloc, script: "readlink /proc/self/ns/net", options: fmt.Sprintf("network_mode = %q", mode)}
	equal("namespace", w.inside(a, second), strings.TrimSpace(first.data("first")))
	a.stop(first, "SIGKILL", 1)
	w.destroy(a, first)
}

// rowGroupNetwork joins a namespace as Nomad makes it for a group in bridge mode.
func rowGroupNetwork(w *world) {
	name := fmt.Sprintf("conformance-%08x", rand.Uint32())
	// Where Podman is: on a host whose mounts are private it sees no other.
	there := func(arguments ...string) []byte {
		arguments = append([]string{"--mount", fmt.Sprintf("--target=%d", w.servicePid()), "--"}, arguments...)
		return must(exec.Command("nsenter", arguments...).Output())
	}
	there("ip", "netns", "add", name)
	w.atEnd(func() { there("ip", "netns", "delete", name) })
	number := strings.TrimSpace(string(there("stat", "--format=%i", "/var/run/netns/"+name)))
	change := func(c *driver.TaskConfig) {
		c.NetworkIsolationSpec = &driver.NetworkIsolationSpec{
			Mode: driver.NetworkIsolationSpec_GROUP, Path: "/var/run/netns/" + name,
			HostsConfig: &driver.HostsConfig{Hostname: "group-host", Address: "192.0.2.200"},
		}
		c.Dns = &driver.DNSConfig{Servers: []string{"192.0.2.53"}}
	}
	options := `extra_hosts = ["db.example:192.0.2.9"]` + "\nnetwork_mode = \"\""
	out := w.inside(w.launchPodman(), order{script: "readlink /proc/self/ns/net; cat /etc/hosts /etc/resolv.conf", options: options, change: change})
	contains("output", out, "net:["+number+"]", "192.0.2.200", "group-host", "db.example", "nameserver 192.0.2.53")
}

func rowCustomNetwork(w *world) {
	a := w.launchPodman()
	number := rand.IntN(1 << 12)
	prefix := fmt.Sprintf("10.%d.%d", 96+number>>8, number&255)
	name := fmt.Sprintf("conformance%d", number)
	w.tell("POST", "networks/create", map[string]any{
		"name": name, "network_interface": fmt.Sprint("conf", number),
		"driver": "bridge", "subnets": []map[string]string{{"subnet": prefix + ".0/24", "gateway": prefix + ".1"}},
	})
	w.atEnd(func() { w.ask("DELETE", "networks/"+name+"?force=true", nil) })
	for _, one := range []struct{ options, want string }{
		{"", prefix + "."},
		{fmt.Sprintf("ipv4_address = \"%s.77\"\nstatic_mac = \"92:d0:c6:0a:29:33\"", prefix), prefix + ".77"},
	} {
		t := w.prepare(a, forever, fmt.Sprintf("network_mode = %q\n%s", name, one.options))
		network := must(a.driver.StartTask(soon(), t.request)).NetworkOverride
		demand(network != nil && strings.HasPrefix(network.Addr, one.want), "address told: %v", network)
		equal("address", w.address(t), network.Addr)
		equal("advertised", network.AutoAdvertise, true)
		a.stop(t, "SIGKILL", 1)
		w.destroy(a, t)
	}
	for _, bad := range []string{`ipv4_address = "not an address"`, `ipv4_address = "2001:db8::1"`, `static_mac = "xx"`} {
		w.refused(a, order{options: fmt.Sprintf("network_mode = %q\n%s", name, bad)}, strings.Fields(bad)[0])
	}
	w.refused(a, order{options: "network_mode = \"host\"\nipv4_address = \"10.0.0.1\""}, "static_ips")
}

package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"path/filepath"
	"regexp"
	"sync"
)

// moment is a point in a driver's conversation with Podman: a call, before Podman hears of it or after it was done and before the
// driver hears of that.
type moment struct {
	name   string
	method string
	path   *regexp.Regexp
	after  bool
}

// proxy stands between a driver and its Podman service. It counts calls, and does something at a moment.
type proxy struct {
	socket string
	server *http.Server

	sync.Mutex
	calls  int
	moment *moment
	reach  func()
}

// proxyTo listens on a socket of its own for a service.
func (w *world) proxyTo(service string) *proxy {
	p := &proxy{socket: filepath.Join(w.folder, "proxy.sock")}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", service)
	}
	forward := &httputil.ReverseProxy{
		Rewrite: func(request *httputil.ProxyRequest) {
			request.Out.URL.Scheme, request.Out.URL.Host = "http", "podman"
		},
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true},
		FlushInterval: -1,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ModifyResponse: func(response *http.Response) error {
			_ = p.pass(response.Request, true)
			return nil
		},
	}
	listener := must(net.Listen("unix", p.socket))
	p.server = &http.Server{Handler: http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		if p.pass(request, false) {
			// Podman never hears of it: not even of a call whose caller has just died, which it would carry out at some later time.
			panic(http.ErrAbortHandler)
		}
		forward.ServeHTTP(response, request)
	})}
	go func() { _ = p.server.Serve(listener) }()
	w.atEnd(func() { _ = p.server.Close() })
	return p
}

// at has something done once, at the next such moment. The call waits for it. It must end the driver or its Podman service: a call
// that Podman has not heard of by then ends without an answer.
func (p *proxy) at(m moment, reach func()) {
	p.Lock()
	defer p.Unlock()
	p.moment, p.reach = &m, reach
}

// count is how many calls there were so far.
func (p *proxy) count() int {
	p.Lock()
	defer p.Unlock()
	return p.calls
}

// pass is called at each moment, and says whether it was the one.
func (p *proxy) pass(request *http.Request, after bool) bool {
	p.Lock()
	if !after {
		p.calls++
	}
	reach := p.reach
	m := p.moment
	hit := m != nil && m.after == after && m.method == request.Method && m.path.MatchString(request.URL.Path)
	if hit {
		p.moment, p.reach = nil, nil
	}
	p.Unlock()
	if hit {
		reach()
	}
	return hit
}

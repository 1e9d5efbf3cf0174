package main

import (
	"fmt"
	"strings"
	"time"
)

// limit is far beyond what anything here takes on a busy machine, so that only a hang reaches it.
var limit = time.Minute

// skipped is why a check cannot be made here.
type skipped string

// skip ends the check without a verdict.
func skip(format string, arguments ...any) {
	panic(skipped(fmt.Sprintf(format, arguments...)))
}

// must returns the value of a call that may not fail.
func must[T any](value T, err error) T {
	demand(err == nil, "%v", err)
	return value
}

// demand ends the check unless the condition holds.
func demand(condition bool, format string, arguments ...any) {
	if !condition {
		panic(fmt.Sprintf(format, arguments...))
	}
}

// equal ends the check unless both are the same.
func equal[T comparable](what string, got, want T) {
	demand(got == want, "%s: got %v, want %v", what, got, want)
}

// contains ends the check unless the text has every part.
func contains(what, text string, parts ...string) {
	for _, part := range parts {
		demand(strings.Contains(text, part), "%s: %q is not in %q", what, part, text)
	}
}

// eventually waits for a condition.
func eventually(what string, condition func() bool) {
	deadline := time.Now().Add(limit)
	for !condition() {
		demand(time.Now().Before(deadline), "not within %v: %s", limit, what)
		time.Sleep(5 * time.Millisecond)
	}
}

// receive waits for a value.
func receive[T any](what string, channel <-chan T) T {
	select {
	case value := <-channel:
		return value
	case <-time.After(limit):
		panic(fmt.Sprintf("not within %v: %s", limit, what))
	}
}

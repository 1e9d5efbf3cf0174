package main

import (
	"fmt"
	"time"
)

// limit is far beyond what anything here takes on a busy machine, so that only a hang reaches it.
const limit = 30 * time.Second

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

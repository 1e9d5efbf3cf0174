package main

var podmanChecks = []check{}

func (a *agent) configure(w *world) {}

//go:build tools

// Package tools names the program that the test bed builds from its Go module.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)

//go:build tools

// Package tools names the programs that the test bed builds from Go modules.
package tools

import (
	_ "gvisor.dev/gvisor/runsc"
	_ "gvisor.dev/gvisor/shim"
)

// Package rosetta stands in for a module that is not to be had everywhere. The docker CLI asks it one
// question, whether it runs translated on a Mac, and on Linux the answer is known.
package rosetta

// Enabled says whether the process is translated by Rosetta.
func Enabled() bool { return false }

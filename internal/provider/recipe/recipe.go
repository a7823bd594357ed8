// Package recipe is the provider that is data: a YAML file describes the key
// API of a vendor, and [New] makes a driver of it.
//
// A driver keeps no state and repeats no call. It classifies every failure
// (see [provider.Kind]): what was certainly not done is told from what may
// have been done. No error, preview or report holds a secret or a body.
// Redirects are not followed, and the manager key goes to no other host than
// the one that the recipe and its params name.
//
// Left to the caller: time-outs (through ctx), repeats, propagation (waiting
// until a new key works), and proof of revocation.
package recipe

import "github.com/keybaton/keybaton/internal/provider/spec"

// Recipe is a parsed recipe; see [spec.Recipe].
type Recipe = spec.Recipe

// ParseError is everything that is wrong with one recipe; see
// [spec.ParseError].
type ParseError = spec.ParseError

// Problem is one thing that is wrong with a recipe; see [spec.Problem].
type Problem = spec.Problem

// Parse reads the recipe src; name is the file in problems. The error is a
// [*ParseError] with everything that is wrong, in the order of the file.
func Parse(name string, src []byte) (*Recipe, error) { return spec.Parse(name, src) }

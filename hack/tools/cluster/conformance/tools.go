//go:build tools

// Package conformance names what hack/cluster conformance builds, so that go.mod pins it: Kubernetes' own suite, the programs of its
// images, and ginkgo, which runs it.
package conformance

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
	_ "k8s.io/kubernetes/test/images/nonewprivs"
	_ "k8s.io/sample-apiserver"
)

// remotecommand runs what kubectl runs: client-go's executors, against a streaming URL. Its standard streams are the session's, its exit
// status is that of the command.
//
//	remotecommand [-websocket] [-i] [-t] [-size WIDTHxHEIGHT] [-ca FILE] URL
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// one is a queue with a single size.
type one struct{ size *remotecommand.TerminalSize }

func (queue *one) Next() *remotecommand.TerminalSize {
	size := queue.size
	queue.size = nil
	return size
}

func main() {
	websocket := flag.Bool("websocket", false, "WebSocket instead of SPDY")
	interactive := flag.Bool("i", false, "with standard input")
	tty := flag.Bool("t", false, "with a terminal")
	size := flag.String("size", "", "of the terminal, as 80x24")
	ca := flag.String("ca", "", "file with the certificate to trust")
	flag.Parse()
	if err := run(*websocket, *interactive, *tty, *size, *ca); err != nil {
		var exit exec.CodeExitError
		if errors.As(err, &exit) {
			os.Exit(exit.Code)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
}

func run(websocket, interactive, tty bool, size, ca string) error {
	target, err := url.Parse(flag.Arg(0))
	if err != nil {
		return err
	}
	config := &rest.Config{Host: target.Host, TLSClientConfig: rest.TLSClientConfig{CAFile: ca}}
	var executor remotecommand.Executor
	if websocket {
		executor, err = remotecommand.NewWebSocketExecutor(config, "GET", target.String())
	} else {
		executor, err = remotecommand.NewSPDYExecutor(config, "POST", target)
	}
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: tty}
	if !tty {
		options.Stderr = os.Stderr
	}
	if interactive {
		options.Stdin = io.Reader(os.Stdin)
	}
	if size != "" {
		var width, height uint16
		if _, err := fmt.Sscanf(size, "%dx%d", &width, &height); err != nil {
			return err
		}
		options.TerminalSizeQueue = &one{&remotecommand.TerminalSize{Width: width, Height: height}}
	}
	return executor.StreamWithContext(context.Background(), options)
}

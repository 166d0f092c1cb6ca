// passthrough asks a runtime for its version as clients do that give grpc-go a socket's path as it is, which then is the authority of
// every call. It prints the runtime's name as often as it has asked.
//
//	passthrough SOCKET...
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	for _, socket := range os.Args[1:] {
		if err := ask(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func ask(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", address)
	}
	connection, err := grpc.NewClient("passthrough:///"+socket, grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := runtime.NewRuntimeServiceClient(connection)
	// The second call names the authority by an index of HPACK's table.
	for range 2 {
		version, err := client.Version(ctx, &runtime.VersionRequest{})
		if err != nil {
			return err
		}
		fmt.Println(version.RuntimeName)
	}
	return nil
}

//! PortForward, over SPDY and as old WebSocket clients want it.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{TcpListener, TcpStream},
    thread,
};

use berth_proto::v1;
use berth_tests::{Config, SpdyClient, pod};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use tonic::Code;

use crate::session::{echo, port_forward};

#[tokio::test]
async fn ports_of_a_pod_are_forwarded() {
    let (machine, _daemon, cri, sandbox) = echo().await;
    // A server in the pod that listens on IPv6 only.
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
    let status = cri.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
    let info: Value = serde_json::from_str(&status.info["info"]).unwrap();
    let netns = info["netNamespace"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let six = machine.in_netns(&netns, || TcpListener::bind("[::1]:81").unwrap());
    thread::spawn(move || six.accept().unwrap().0.write_all(b"six\n").unwrap());
    let url = port_forward(&cri, &sandbox).await;
    machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "portforward.k8s.io");
        let pair = |client: &mut SpdyClient, port: &str, request: &str| {
            let headers = |kind| {
                [
                    ("port", port.to_owned()),
                    ("requestid", request.to_owned()),
                    ("streamtype", String::from(kind)),
                ]
            };
            let mut open = |kind| {
                let headers = headers(kind);
                client.open(&headers.each_ref().map(|(name, value)| (*name, value.as_str())))
            };
            (open("error"), open("data"))
        };
        let (_, first) = pair(&mut client, "80", "1");
        let (_, second) = pair(&mut client, "80", "2");
        let (error, nobody) = pair(&mut client, "9", "3");
        let (_, six) = pair(&mut client, "81", "4");
        let refused = client.open(&[("port", "80"), ("streamtype", "wrong")]);
        let much: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
        client.send(first, b"one");
        for piece in much.chunks(30_000) {
            client.send(second, piece);
        }
        client.finish(first);
        client.finish(second);
        let wanted = [first, second, error, nobody, six, refused];
        client
            .read_until(|client| wanted.iter().all(|stream| client.ended.contains(stream)))
            .unwrap();
        assert_eq!((client.text(first).as_str(), client.text(six).as_str()), ("one", "six\n"));
        assert!(client.came[&second] == much, "{} bytes came back", client.came[&second].len());
        assert!(
            client.text(error).contains("port 9 of the pod")
                && client.text(error).contains("refused"),
            "{}",
            client.text(error)
        );
        // The server answers a ping.
        client.control(6, &7_u32.to_be_bytes());
        client.read_until(|client| client.came.contains_key(&0)).unwrap();
        assert_eq!(client.came[&0], 7_u32.to_be_bytes());
    });

    // A pod with the host's network.
    let mut config = pod(&machine, "host");
    let options =
        v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
    config.security().namespace_options = Some(options);
    let host = cri.run_pod(config).await.unwrap();
    let listener = machine.in_network(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port().to_string();
    thread::spawn(move || listener.accept().unwrap().0.write_all(b"from the host").unwrap());
    let url = port_forward(&cri, &host).await;
    machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "portforward.k8s.io");
        // Without a request id, as older clients do it.
        client.open(&[("port", &port), ("streamtype", "error")]);
        let data = client.open(&[("port", &port), ("streamtype", "data")]);
        client.read_until(|client| client.ended.contains(&data)).unwrap();
        assert_eq!(client.text(data), "from the host");
    });
    cri.stop_pod(&sandbox).await.unwrap();
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox, port: Vec::new() };
    assert_eq!(
        cri.runtime.clone().port_forward(request).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
}

#[tokio::test]
async fn ports_are_forwarded_as_old_websocket_clients_want_it() {
    let (machine, _daemon, cri, sandbox) = echo().await;
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![80, 9] };
    let url = cri.runtime.clone().port_forward(request).await.unwrap().into_inner().url;
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().unwrap());
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let socket = machine.in_network(|| TcpStream::connect(address).unwrap());
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::TcpStream::from_std(socket).unwrap();
    let (mut client, answer) = tokio_tungstenite::client_async(request, socket).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
    client.send(Message::binary(b"\x00hello".to_vec())).await.unwrap();
    let mut came: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    while !came.get(&0).is_some_and(|bytes| bytes.ends_with(b"hello"))
        || came.get(&3).is_none_or(|bytes| bytes.len() < 3)
    {
        let Message::Binary(bytes) = client.next().await.unwrap().unwrap() else { continue };
        came.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
    }
    assert_eq!(
        (came[&0].as_slice(), came[&1].as_slice()),
        (&b"\x50\x00hello"[..], &b"\x50\x00"[..])
    );
    let refused = String::from_utf8_lossy(&came[&3][2..]);
    assert!(refused.contains("port 9 of the pod"), "{refused}");
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox, port: vec![80_000] };
    assert_eq!(
        cri.runtime.clone().port_forward(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

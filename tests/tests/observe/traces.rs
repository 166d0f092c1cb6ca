//! Traces: what a collector receives of an RPC that came with a trace, and what the log says of it.

use std::{collections::HashMap, fs, net::TcpListener};

use berth_proto::v1;
use berth_tests::{Engine, Image, Machine, certificate, container, engine, eventually, pod};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use prost::Message;
use tokio::sync::mpsc;
use tonic::{
    Request, Response, Status,
    service::Routes,
    transport::{Identity, Server, ServerTlsConfig},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A collector, which passes on the spans of berthd with the service's name.
#[derive(Clone)]
struct Collector(mpsc::UnboundedSender<(String, Span)>);

impl Collector {
    fn take(&self, request: ExportTraceServiceRequest) {
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = format!("{:?}", service.and_then(|attribute| attribute.value));
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let _ = self.0.send((service.clone(), span));
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Starts a collector on the machine's loopback interface, for OTLP over gRPC or HTTP; returns its
/// port and what it receives.
fn collector(
    machine: &Machine,
    tls: Option<ServerTlsConfig>,
) -> (u16, mpsc::UnboundedReceiver<(String, Span)>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let collector = Collector(sender);
    let listener = machine.in_network(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(
        tokio::net::TcpListener::from_std(listener).unwrap(),
    );
    let by_http = collector.clone();
    let post = axum::routing::post(async move |body: axum::body::Bytes| {
        by_http.take(ExportTraceServiceRequest::decode(body).unwrap());
        (
            [("content-type", "application/x-protobuf")],
            ExportTraceServiceResponse::default().encode_to_vec(),
        )
    });
    let routes = axum::Router::new().route("/v1/traces", post);
    let routes = Routes::from(routes).add_service(TraceServiceServer::new(collector));
    let server =
        tls.into_iter().fold(Server::builder(), |server, tls| server.tls_config(tls).unwrap());
    tokio::spawn(server.accept_http1(true).add_routes(routes).serve_with_incoming(incoming));
    (port, receiver)
}

fn set<const N: usize>(machine: &mut Machine, variables: [(&str, &str); N]) {
    machine.environment.extend(variables.map(|(name, value)| (name.into(), value.into())));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request with a `traceparent`, as the kubelet sends it.
fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    request
}

#[tokio::test]
async fn the_steps_of_a_traced_rpc_are_its_spans() {
    let mut machine = Machine::new();
    let (port, mut spans) = collector(&machine, None);
    let endpoint = format!("http://127.0.0.1:{port}");
    set(
        &mut machine,
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")],
    );
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let image = cri.pull_image(&machine, Image::busybox()).await;
    let run =
        v1::RunPodSandboxRequest { config: Some(pod(&machine, "traced")), ..Default::default() };
    let sandbox =
        cri.runtime.clone().run_pod_sandbox(traced(run)).await.unwrap().into_inner().pod_sandbox_id;
    let id = cri.create(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let start = v1::StartContainerRequest { container_id: id };
    cri.runtime.clone().start_container(traced(start.clone())).await.unwrap();
    cri.runtime.clone().start_container(traced(start)).await.unwrap_err();

    let mut got: Vec<(String, Span)> = Vec::new();
    let of = |spans: &[(String, Span)], name: &str| -> Vec<Span> {
        spans.iter().map(|(_, span)| span).filter(|span| span.name == name).cloned().collect()
    };
    eventually("all spans", async || {
        while let Ok(span) = spans.try_recv() {
            got.push(span);
        }
        of(&got, "runtime.v1.RuntimeService/StartContainer").len() == 2
    })
    .await;
    assert!(got.iter().all(|(service, _)| service.contains("berthd")), "{got:?}");
    let rpc = of(&got, "runtime.v1.RuntimeService/RunPodSandbox").pop().unwrap();
    assert_eq!(
        (hex(&rpc.trace_id), hex(&rpc.parent_span_id)),
        (TRACE.to_owned(), CALLER.to_owned())
    );
    assert_eq!(rpc.kind, 2, "of a server");
    let parents: HashMap<Vec<u8>, String> =
        got.iter().map(|(_, span)| (span.span_id.clone(), span.name.clone())).collect();
    for (name, parent) in [
        ("pin", "runtime.v1.RuntimeService/RunPodSandbox"),
        ("network", "runtime.v1.RuntimeService/RunPodSandbox"),
        ("berth-bridge ADD", "network"),
        ("launch", "runtime.v1.RuntimeService/StartContainer"),
    ] {
        let span = of(&got, name).pop().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(
            (hex(&span.trace_id).as_str(), parents[&span.parent_span_id].as_str()),
            (TRACE, parent),
            "{name}"
        );
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    }
    let pulled = of(&got, "layer").pop().unwrap();
    assert!(hex(&pulled.trace_id) != TRACE && parents[&pulled.parent_span_id] == "layers");
    let failed = of(&got, "runtime.v1.RuntimeService/StartContainer");
    let failed: Vec<_> = failed
        .iter()
        .filter(|span| span.status.as_ref().is_some_and(|status| status.code == 2))
        .collect();
    assert_eq!(failed.len(), 1, "{failed:?}");

    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn log_lines_name_the_trace_without_any_collector() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let spec = v1::ImageSpec { image: "127.0.0.1:1/none:1".into(), ..Default::default() };
    let update = v1::RuntimeConfig {
        network_config: Some(v1::NetworkConfig { pod_cidr: "10.77.0.0/24".into() }),
    };
    let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(update) };
    cri.runtime.clone().update_runtime_config(traced(request)).await.unwrap();
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("10.77.0.0/24")).unwrap();
    assert!(line.contains("UpdateRuntimeConfig") && line.contains(TRACE), "{line}");
    cri.images
        .clone()
        .pull_image(v1::PullImageRequest { image: Some(spec), ..Default::default() })
        .await
        .unwrap_err();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_collector_is_reached_by_grpc_and_by_http_with_and_without_tls() {
    for (protocol, scheme) in [("grpc", "http"), ("grpc", "https"), ("http/protobuf", "https")] {
        let mut machine = Machine::new();
        let (certificate, key) = certificate(&machine.path("collector"));
        let tls = || {
            let identity =
                Identity::from_pem(fs::read(&certificate).unwrap(), fs::read(&key).unwrap());
            ServerTlsConfig::new().identity(identity)
        };
        let (port, mut spans) = collector(&machine, (scheme == "https").then(tls));
        let endpoint = format!("{scheme}://127.0.0.1:{port}");
        let certificates = certificate.to_str().unwrap();
        set(
            &mut machine,
            [("OTEL_EXPORTER_OTLP_PROTOCOL", protocol), ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)],
        );
        set(&mut machine, [("OTEL_BSP_SCHEDULE_DELAY", "100"), ("SSL_CERT_FILE", certificates)]);
        let daemon = machine.start().await;
        daemon.cri().runtime.clone().version(traced(v1::VersionRequest::default())).await.unwrap();
        let what = format!("a span by {protocol}, {scheme}");
        let is_it = |span: &Span| span.name.ends_with("/Version") && hex(&span.trace_id) == TRACE;
        eventually(&what, async || spans.try_recv().is_ok_and(|(_, span)| is_it(&span))).await;
        machine.assert_clean().await;
    }
}

#[tokio::test]
async fn a_collector_that_is_down_is_told_in_the_log() {
    let mut machine = Machine::new();
    set(
        &mut machine,
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_BSP_SCHEDULE_DELAY", "100")],
    );
    let daemon = machine.start().await;
    daemon.cri().runtime.clone().version(v1::VersionRequest::default()).await.unwrap();
    eventually("a line of it", async || daemon.log().contains("ExportError")).await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_protocol_that_is_not_spoken_is_said_at_the_start() {
    let mut machine = Machine::new();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    set(&mut machine, [endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]);
    let (daemon, _) = machine.launch(&[]);
    eventually("its words", async || daemon.log().contains("OTEL_EXPORTER_OTLP_PROTOCOL")).await;
    assert!(!daemon.wait().success());
}

#[tokio::test]
async fn a_request_of_the_engine_is_a_span_of_its_callers_trace() {
    let mut machine = Machine::new();
    machine.config = engine::config();
    let (port, mut spans) = collector(&machine, None);
    let endpoint = format!("http://127.0.0.1:{port}");
    set(
        &mut machine,
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")],
    );
    let _daemon = machine.start().await;
    let socket = Engine::of(&machine).socket;
    let client = reqwest::Client::builder().unix_socket(socket).build().unwrap();
    let request = client.post("http://docker/v1.51/containers/nope/start");
    let request = request.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    assert_eq!(request.send().await.unwrap().status(), 404);
    let is_it =
        |span: &Span| span.name == "POST /containers/{name}/start" && hex(&span.trace_id) == TRACE;
    eventually("its span", async || spans.try_recv().is_ok_and(|(_, span)| is_it(&span))).await;
    machine.assert_clean().await;
}

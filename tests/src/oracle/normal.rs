//! What differs from run to run is taken out of an answer: ids, times, addresses, processes, and
//! where a server keeps its files. Everything else stays.

use std::io::Read as _;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::http::Response;

/// Numbers that say when, how long, how much, or which process.
const MEASURED: [&str; 8] =
    ["Created", "time", "timeNano", "Pid", "SystemTime", "MemTotal", "NGoroutines", "NFd"];
/// Lists whose order dockerd leaves to chance, and what orders them here.
const UNORDERED: [(&str, &str); 3] =
    [("Mounts", "Destination"), ("Ports", "PrivatePort"), ("Networks", "Name")];
/// The headers that clients look at.
const HEADERS: [&str; 9] = [
    "content-type",
    "api-version",
    "builder-version",
    "docker-experimental",
    "ostype",
    "swarm",
    "cache-control",
    "upgrade",
    "server",
];
const STAT: &str = "x-docker-container-path-stat";

/// What is compared of a response, as JSON. `own` is the directory of the server.
pub(super) fn response(response: &Response, own: &str) -> Value {
    let mut headers = Map::new();
    for name in HEADERS {
        if let Some(value) = response.header(name) {
            headers.insert(name.to_owned(), json!(text(value, own)));
        }
    }
    if let Some(stat) = response.header(STAT) {
        headers.insert(STAT.to_owned(), stat_of(stat, own));
    }
    let mut answer = json!({ "status": response.status, "headers": headers });
    answer["body"] = body(response, own);
    if !response.ended {
        answer["ended"] = json!(false);
    }
    answer
}

fn stat_of(header: &str, own: &str) -> Value {
    let bytes = base64::engine::general_purpose::STANDARD.decode(header).unwrap_or_default();
    serde_json::from_slice(&bytes).map_or_else(|_| json!(header), |stat| value("", stat, own))
}

fn body(response: &Response, own: &str) -> Value {
    let bytes = &response.body[..];
    let content_type = response.header("content-type").unwrap_or_default();
    if content_type == "application/x-tar" {
        return listing(bytes, own);
    }
    if let Some(frames) = frames(bytes, own).filter(|frames| !frames.is_empty()) {
        return json!(frames);
    }
    if let Ok(body) = serde_json::from_slice(bytes) {
        return value("", body, own);
    }
    // Events, stats and progress are JSON, one after the other.
    let stream = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    match stream.collect::<Result<Vec<_>, _>>() {
        Ok(values) if !values.is_empty() => {
            values.into_iter().map(|item| value("", item, own)).collect()
        }
        _ => json!(text(&String::from_utf8_lossy(bytes), own)),
    }
}

/// The bytes of each stream of a multiplexed connection, joined: where a frame ends is up to the
/// scheduler. `None` if these are no frames.
fn frames(mut bytes: &[u8], own: &str) -> Option<Map<String, Value>> {
    let mut streams = [const { Vec::new() }; 4];
    while !bytes.is_empty() {
        let (header, rest) = bytes.split_at_checked(8)?;
        let [stream, 0, 0, 0, length @ ..] = header else { return None };
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        streams.get_mut(*stream as usize)?.extend_from_slice(rest.get(..length)?);
        bytes = &rest[length..];
    }
    let names = ["stdin", "stdout", "stderr", "error"];
    let some = names.into_iter().zip(streams).filter(|(_, bytes)| !bytes.is_empty());
    Some(
        some.map(|(name, bytes)| {
            (name.to_owned(), json!(text(&String::from_utf8_lossy(&bytes), own)))
        })
        .collect(),
    )
}

/// The entries of a tar, one line for each, at most fifty.
fn listing(bytes: &[u8], own: &str) -> Value {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().into_iter().flatten().flatten().take(50);
    let line = |mut entry: tar::Entry<'_, &[u8]>| {
        let path = entry.path_bytes().into_owned();
        let link = entry.link_name_bytes().unwrap_or_default().into_owned();
        let header = entry.header().clone();
        let mut content = String::new();
        // Programs are not text, and their size says enough.
        let _ = entry.by_ref().take(200).read_to_string(&mut content);
        format!(
            "{:?} {} {:o} {}:{} {} {} {content:?}",
            header.entry_type(),
            String::from_utf8_lossy(&path),
            header.mode().unwrap_or_default(),
            header.uid().unwrap_or_default(),
            header.gid().unwrap_or_default(),
            header.size().unwrap_or_default(),
            String::from_utf8_lossy(&link),
            content = text(&content, own),
        )
    };
    let mut lines: Vec<String> = entries.map(line).collect();
    lines.sort();
    json!(lines)
}

/// A value below a key, with what differs from run to run taken out.
pub(super) fn value(key: &str, given: Value, own: &str) -> Value {
    match given {
        Value::String(_) if key == "execDuration" => json!("<number>"),
        Value::String(content) if is_port(key, content.parse().ok()) => json!("<port>"),
        Value::String(content) => json!(text(&content, own)),
        Value::Number(number) if MEASURED.contains(&key) && number.as_f64() != Some(0.0) => {
            json!("<number>")
        }
        Value::Number(number) if is_port(key, number.as_u64()) => json!("<port>"),
        Value::Array(items) => {
            let items = items.into_iter().map(|item| value("", item, own));
            let mut items: Vec<Value> = items.collect();
            if let Some((_, by)) = UNORDERED.iter().find(|(name, _)| *name == key) {
                items.sort_by_key(|item| format!("{} {item}", item[*by]));
            }
            // What has changed in a container comes in the order of a map.
            if items.iter().all(|item| item["Kind"].is_number() && item["Path"].is_string()) {
                items.sort_by_key(|item| item["Path"].to_string());
            }
            items.into()
        }
        Value::Object(map) => {
            let entry = |(key, item): (String, Value)| {
                let item = value(&key, item, own);
                (text(&key, own), item)
            };
            map.into_iter().map(entry).collect()
        }
        other => other,
    }
}

/// Whether this is a port that the server has chosen.
fn is_port(key: &str, number: Option<u64>) -> bool {
    ["HostPort", "PublicPort"].contains(&key) && number.is_some_and(|port| port >= 32768)
}

/// Only names and types: a leaf becomes the name of its type.
pub(super) fn shape(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(shape).collect(),
        Value::Object(map) => map.into_iter().map(|(key, item)| (key, shape(item))).collect(),
        Value::String(_) => json!("string"),
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("bool"),
        Value::Null => json!("null"),
    }
}

/// A text with what differs from run to run taken out. Columns of tables get one space between
/// them, since their width depends on what is in them.
pub(super) fn text(content: &str, own: &str) -> String {
    let content = without_manifests(&content.replace(own, "<own>"));
    let mut normal = String::new();
    for line in content.split_inclusive('\n') {
        normal += &line_of(line);
    }
    normal
}

/// Takes the digests of manifests out, which depend on the program that compresses layers. Those of
/// images stay.
fn without_manifests(content: &str) -> String {
    let mut normal = String::new();
    let mut rest = content;
    while let Some(at) = rest.find("sha256:") {
        let (before, digest) = rest.split_at(at);
        normal += before;
        let is_manifest = before.ends_with('@') || before.ends_with("igest: ");
        let digits = digest["sha256:".len()..].bytes();
        let end = "sha256:".len() + digits.take_while(u8::is_ascii_hexdigit).count();
        normal += match is_manifest {
            true => "<digest>",
            false => &digest[..end],
        };
        rest = &digest[end..];
    }
    normal + rest
}

fn line_of(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let end = &line[line.trim_end_matches(['\n', '\r']).len()..];
    let body = line.strip_suffix(end).unwrap_or(line);
    let indent = &body[..body.len() - body.trim_start_matches([' ', '\t']).len()];
    let is_table = body.contains("   ");
    let separator = |c: char| c == ' ';
    for word in body[indent.len()..].split(separator) {
        if !(is_table && word.is_empty()) {
            words.push(word_of(word));
        }
    }
    format!("{indent}{}{end}", ages(&words.join(" ")))
}

/// A word by what it looks like: an id in it, a time, an address.
fn word_of(word: &str) -> String {
    let mut normal = String::new();
    let mut run = String::new();
    let is_part = |c: char| c.is_ascii_alphanumeric() || [':', '.', '-', '+'].contains(&c);
    for c in word.chars() {
        if is_part(c) {
            run.push(c);
        } else {
            normal += &token(&std::mem::take(&mut run));
            normal.push(c);
        }
    }
    normal + &token(&run)
}

fn token(run: &str) -> String {
    if run.is_empty() || run.starts_with("0001-01-01T") {
        return run.to_owned();
    }
    // Digests are the same on both sides, as long as they are of the same image.
    if run.starts_with("sha256:") {
        return run.to_owned();
    }
    if is_time(run) {
        return "<time>".to_owned();
    }
    if is_mac(run) {
        return "<mac>".to_owned();
    }
    let pieces: Vec<String> = run.split(':').map(piece).collect();
    pieces.join(":")
}

fn piece(piece: &str) -> String {
    // Ids are parts of names of files, too.
    let parts: Vec<String> = piece.split('-').map(part).collect();
    parts.join("-")
}

fn part(piece: &str) -> String {
    let bare = piece.trim_end_matches('.');
    let end = &piece[bare.len()..];
    let is_hex = bare.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match bare.len() {
        64 if is_hex => return format!("<id>{end}"),
        12 if is_hex => return format!("<short id>{end}"),
        _ => {}
    }
    // A time as events are asked for.
    if let Some((seconds, nanoseconds)) = piece.split_once('.')
        && (seconds.len(), nanoseconds.len()) == (10, 9)
        && format!("{seconds}{nanoseconds}").bytes().all(|byte| byte.is_ascii_digit())
    {
        return "<time>".to_owned();
    }
    // The container's part of an address depends on what came before.
    match piece.rsplit_once('.') {
        Some((network, last))
            if network.starts_with("172.17.0") && last != "1" && last.parse::<u8>().is_ok() =>
        {
            format!("{network}.<n>")
        }
        _ => piece.to_owned(),
    }
}

/// As in `2026-11-30T10:11:39.976780883Z`.
fn is_time(run: &str) -> bool {
    let bytes = run.as_bytes();
    bytes.len() >= 20
        && [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')]
            .iter()
            .all(|(at, byte)| bytes[*at] == *byte)
}

fn is_mac(run: &str) -> bool {
    let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    run.split(':').count() == 6 && run.split(':').all(is_byte)
}

/// The client's and the server's words for how long ago something was become `<age>`.
fn ages(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let units = ["second", "seconds", "minute", "minutes", "hour", "hours"];
    let months =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut normal: Vec<&str> = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let rest = &words[at..];
        let unit = |word: &str| units.contains(&word.trim_end_matches([')', ',']));
        at += match rest {
            ["Less", "than", "a", word, ..] | ["About", "a" | "an", word, ..] if unit(word) => {
                normal.push("<age>");
                rest.iter().position(|word| unit(word)).unwrap_or(0) + 1
            }
            [number, word, ..] if number.parse::<u32>().is_ok() && unit(word) => {
                normal.push("<age>");
                2
            }
            // As ls(1) has it.
            [month, day, time, ..]
                if months.contains(month)
                    && day.parse::<u8>().is_ok()
                    && time.len() == 5
                    && time.contains(':') =>
            {
                normal.push("<time>");
                3
            }
            [word, ..] => {
                normal.push(word);
                1
            }
            [] => 1,
        };
    }
    normal.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_lose_what_differs() {
        let id = "0123456789abcdef".repeat(4);
        let cases = [
            (format!("container {id}."), "container <id>.".to_owned()),
            (
                "0123456789ab   busybox   Up 3 seconds".to_owned(),
                "<short id> busybox Up <age>".into(),
            ),
            ("Up Less than a second (Paused)".to_owned(), "Up <age> (Paused)".into()),
            ("Exited (0) About a minute ago".to_owned(), "Exited (0) <age> ago".into()),
            ("/own/x/hosts 172.17.0.5".to_owned(), "<own>/x/hosts 172.17.0.<n>".into()),
            ("172.17.0.1 172.18.0.5".to_owned(), "172.17.0.1 172.18.0.5".into()),
            ("02:42:ac:11:00:02".to_owned(), "<mac>".into()),
            ("2026-11-30T10:11:39.976780883Z x".to_owned(), "<time> x".into()),
            (format!("/x/{id}-json.log"), "/x/<id>-json.log".into()),
            ("since 1796036705.662225661".to_owned(), "since <time>".into()),
            ("0001-01-01T00:00:00Z".to_owned(), "0001-01-01T00:00:00Z".into()),
            ("0 Nov 30 11:09 fd".to_owned(), "0 <time> fd".into()),
            ("a\n  b\n".to_owned(), "a\n  b\n".into()),
        ];
        for (given, expected) in cases {
            assert_eq!(text(&given, "/own"), expected);
        }
    }

    #[test]
    fn values_lose_what_differs() {
        let given = json!({ "Pid": 12, "Created": 1, "ExitCode": 3, "HostPort": "32768",
            "Mounts": [{ "Destination": "/b" }, { "Destination": "/a" }] });
        let expected = json!({ "Pid": "<number>", "Created": "<number>", "ExitCode": 3,
            "HostPort": "<port>", "Mounts": [{ "Destination": "/a" }, { "Destination": "/b" }] });
        assert_eq!(value("", given, "/own"), expected);
        assert_eq!(value("", json!({ "Pid": 0 }), "/own"), json!({ "Pid": 0 }));
    }

    #[test]
    fn frames_are_joined_by_stream() {
        let bytes = b"\x01\0\0\0\0\0\0\x01a\x02\0\0\0\0\0\0\x01b\x01\0\0\0\0\0\0\x01c";
        assert_eq!(
            frames(bytes, "/own").map(Value::Object),
            Some(json!({ "stdout": "ac", "stderr": "b" }))
        );
        assert_eq!(frames(b"hello world", "/own"), None);
    }
}

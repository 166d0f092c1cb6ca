//! `GET /containers/{name}/top`.

use std::{collections::BTreeSet, process::Stdio};

use http::StatusCode;
use serde::Serialize;
use serde_json::json;
use tokio::process::Command;

use super::Call;
use crate::http::{
    body::{self, Answer},
    error::{Failure, Result},
};

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    titles: Vec<String>,
    processes: Vec<Vec<String>>,
}

/// Runs ps(1) of this machine, and picks the lines of the container's processes.
pub(in crate::routes) async fn top(call: &Call, name: &str) -> Result<Answer> {
    let engine = &call.engine;
    let container = engine.containers.find(name)?;
    let not_running = || Failure::conflict(format!("container {} is not running", container.id));
    if !container.state().is_running() {
        return Err(not_running());
    }
    let run = engine.node.containers.find(&container.id).map_err(|_| not_running())?;
    let asked = match call.query.get("ps_args") {
        "" => "-ef",
        asked => asked,
    };
    check(asked)?;
    let pids: BTreeSet<u32> =
        engine.node.host.cgroups.processes(&run.meta.cgroup).into_iter().collect();
    // First of those processes only, which keeps their order; then of all, for options that cannot
    // be combined with a list of them.
    let list: Vec<String> = pids.iter().map(u32::to_string).collect();
    let text = match ps(asked, Some(&list.join(","))).await {
        Ok(text) => text,
        Err(_) => ps(asked, None).await?,
    };
    let listed = parse(&text, &pids)?;
    engine.publish(&container, "top", json!({}));
    Ok(body::ok(&listed))
}

/// Refuses columns that hide the number of the process under another name.
fn check(asked: &str) -> Result<()> {
    // `-o pid=NAME` renames the column by which lines are found.
    for part in asked.split([' ', ',']) {
        let column = part.trim_start_matches("-o");
        if let Some(name) = column.strip_prefix("pid=")
            && name.trim() != "PID"
        {
            let text = format!("specifying \"{part}\" is not allowed");
            return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text));
        }
    }
    Ok(())
}

async fn ps(asked: &str, pids: Option<&str>) -> Result<String> {
    let failed = |text: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let mut command = Command::new("ps");
    command.args(asked.split(' ').filter(|word| !word.is_empty()));
    if let Some(pids) = pids {
        command.arg("-q").arg(pids);
    }
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.map_err(|error| failed(format!("ps: {error}")))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let first = why.lines().next().unwrap_or("it failed");
        return Err(failed(format!("ps: {first}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The titles, and the lines of these processes. The last column has all that is left of a line.
fn parse(text: &str, pids: &BTreeSet<u32>) -> Result<Listed> {
    let failed = |text: &str| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let mut lines = text.lines();
    let titles: Vec<String> =
        lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let of_pid = titles.iter().position(|title| title == "PID");
    let of_pid = of_pid.ok_or_else(|| failed("Couldn't find PID field in ps output"))?;
    let mut processes = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pid = words.get(of_pid).and_then(|word| word.parse().ok());
        if pid.is_none_or(|pid| !pids.contains(&pid)) || words.len() < titles.len() {
            continue;
        }
        let (columns, rest) = words.split_at(titles.len() - 1);
        let mut process: Vec<String> = columns.iter().map(|word| (*word).to_owned()).collect();
        process.push(rest.join(" "));
        processes.push(process);
    }
    Ok(Listed { titles, processes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_container_are_picked() {
        let text = "UID  PID CMD\nroot   1 init\nroot  20 sh -c  sleep 1\n";
        let listed = parse(text, &BTreeSet::from([20])).unwrap();
        assert_eq!(listed.titles, ["UID", "PID", "CMD"]);
        assert_eq!(listed.processes, [["root", "20", "sh -c sleep 1"]]);
        let error = parse("UID CMD\n", &BTreeSet::new()).unwrap_err();
        assert_eq!(error.message, "Couldn't find PID field in ps output");
        assert!(check("-o pid=X,cmd").is_err() && check("-o pid,cmd").is_ok());
    }
}

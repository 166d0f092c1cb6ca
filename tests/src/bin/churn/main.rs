//! What `hack/churn` runs after the build: churn for as long as one likes, with a line of progress
//! and a table at the end.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_tests::churn::{self, Plan, Report};

const USAGE: &str = "\
Makes random verbs on many pods, kills the daemon, shims, pins and network plugins meanwhile, and compares every answer,
every event and what is left behind with a model of what CRI allows; with --docker, on containers of the Docker Engine
API, half of them with the restart policy `always`.

usage: hack/churn MINUTES [--docker] [--seed N] [--clients N] [--pods N]

  MINUTES       how long, as in 10 or 0.5; the comparison at the end comes on top
  --docker      docker's verbs instead of CRI's
  --seed N      makes the same verbs again (default: another one each time)
  --clients N   how many clients there are at the same time (default 16)
  --pods N      how many pods they have together (default 60)

Exits with 0 if all was as it should be, with 1 and the seed if not, with 2 for wrong arguments.
The same seed makes the same verbs with the same number of clients and pods; whom a kill meets is up to the machine.

Examples:
  hack/churn 10
  hack/churn 5 --docker
  hack/churn 0.5 --seed 42 --clients 4 --pods 12
";

/// Whose verbs, and how many.
fn options() -> Result<Option<(bool, Plan)>, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = u64::from(now.subsec_nanos()) ^ now.as_secs() << 20;
    let mut plan = Plan { seed, clients: 16, pods: 60, duration: Duration::ZERO };
    let mut is_docker = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = |value: Option<String>| value.ok_or(format!("{argument} needs a value"));
        let number = |text: String| {
            text.parse::<u64>().map_err(|error| format!("{argument} {text}: {error}"))
        };
        match argument.as_str() {
            "--seed" => plan.seed = number(value(arguments.next())?)?,
            "--clients" => plan.clients = number(value(arguments.next())?)? as usize,
            "--pods" => plan.pods = number(value(arguments.next())?)? as usize,
            "--docker" => is_docker = true,
            "--help" | "-h" => return Ok(None),
            minutes => {
                let minutes: f64 =
                    minutes.parse().map_err(|_| format!("no option {minutes}; see --help"))?;
                plan.duration = Duration::try_from_secs_f64(minutes * 60.0)
                    .map_err(|error| format!("{minutes} minutes: {error}"))?;
            }
        }
    }
    if plan.duration.is_zero() {
        return Err("for how many minutes? See --help".to_owned());
    }
    Ok(Some((is_docker, plan)))
}

#[allow(clippy::print_stdout, reason = "a program for people")]
fn say(text: &str) {
    println!("{text}");
}

#[tokio::main]
async fn main() -> ExitCode {
    let (is_docker, plan) = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            say(USAGE.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("hack/churn: {error}");
            return ExitCode::from(2);
        }
    };
    say(&format!("seed {}, {} clients, {} pods", plan.seed, plan.clients, plan.pods));
    let progress = |report: &Report| say(&report.progress());
    let churned = match is_docker {
        true => churn::docker::run(plan, progress).await,
        false => churn::run(plan, progress).await,
    };
    match churned {
        Ok(report) => {
            say(&format!("\n{report}\nno wrong answer, and nothing left behind"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nhack/churn: {error:?}");
            ExitCode::FAILURE
        }
    }
}

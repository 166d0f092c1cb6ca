//! `POST /containers/{name}/update`.

use serde_json::json;

use super::Call;
use crate::{
    api::{host_config::HostConfig, json as go},
    container::{check, run, state::Phase},
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    restart::RestartPolicy,
    sysinfo::SysInfo,
};

/// Changes limits, of the run as well if there is one, and the restart policy.
pub(in crate::routes) async fn update(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, request, .. } = call;
    let container = engine.containers.find(name)?;
    body::check_json(&request)?;
    let bytes = body::read(request.into_body()).await?;
    let mut asked = match bytes.iter().all(u8::is_ascii_whitespace) {
        true => HostConfig::default(),
        false => {
            let mut object = go::object(&bytes, "container.UpdateConfig")?;
            go::fields::<HostConfig>(&mut object, "UpdateConfig")?
        }
    };
    let mut warnings = check::resources(&mut asked, &SysInfo::read(), true)?;
    asked.restart_policy.check()?;
    let record = container.record();
    if record.host_config.auto_remove && !["", "no"].contains(&asked.restart_policy.name.as_str()) {
        return Err(Failure::bad_request(
            "Restart policy cannot be updated because AutoRemove is enabled for the container",
        ));
    }
    if matches!(container.state().phase, Phase::Removing | Phase::Removed) {
        return Err(Failure::conflict(format!(
            "Cannot update container {}: container is marked for removal and cannot be \"update\"",
            container.id
        )));
    }
    let mut changed = record.host_config.clone();
    // In the kernel 0 and less take a limit away; the record has none then.
    let pids_limit = asked.pids_limit.map(|limit| if limit > 0 { limit } else { -1 });
    change(&mut changed, asked)?;
    if container.state().is_running() {
        let mut resources = run::resources(&changed)?;
        resources.pids_limit = pids_limit.unwrap_or(resources.pids_limit);
        engine.node.update_container(&container.id, resources).await.map_err(|error| {
            Failure::new(
                http::StatusCode::INTERNAL_SERVER_ERROR,
                format!("Cannot update container {}: {}", container.id, error.message),
            )
        })?;
    }
    container.change_record(|record| record.host_config = changed)?;
    engine.publish(&container, "update", json!({}));
    warnings.dedup();
    let warnings = (!warnings.is_empty()).then_some(warnings);
    Ok(body::ok(&json!({ "Warnings": warnings })))
}

/// Takes over what `asked` names: what is 0 or empty stays as it is.
fn change(host: &mut HostConfig, asked: HostConfig) -> Result<()> {
    conflicts(host, &asked)?;
    for (own, new) in [
        (&mut host.cpu_shares, asked.cpu_shares),
        (&mut host.nano_cpus, asked.nano_cpus),
        (&mut host.cpu_period, asked.cpu_period),
        (&mut host.cpu_quota, asked.cpu_quota),
        (&mut host.cpu_realtime_period, asked.cpu_realtime_period),
        (&mut host.cpu_realtime_runtime, asked.cpu_realtime_runtime),
        (&mut host.memory, asked.memory),
        (&mut host.memory_swap, asked.memory_swap),
        (&mut host.memory_reservation, asked.memory_reservation),
    ] {
        if new != 0 {
            *own = new;
        }
    }
    for (own, new) in
        [(&mut host.cpuset_cpus, asked.cpuset_cpus), (&mut host.cpuset_mems, asked.cpuset_mems)]
    {
        if !new.is_empty() {
            *own = new;
        }
    }
    if asked.blkio_weight != 0 {
        host.blkio_weight = asked.blkio_weight;
    }
    if let Some(limit) = asked.pids_limit {
        // Nothing and less is no limit.
        host.pids_limit = Some(limit).filter(|limit| *limit > 0);
    }
    if !asked.restart_policy.name.is_empty() {
        let RestartPolicy { name, maximum_retry_count } = asked.restart_policy;
        host.restart_policy = RestartPolicy { name, maximum_retry_count };
    }
    Ok(())
}

/// What contradicts limits that are set already.
fn conflicts(host: &HostConfig, asked: &HostConfig) -> Result<()> {
    for (is_there, text) in [
        (
            asked.nano_cpus > 0 && host.cpu_period > 0,
            "Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set",
        ),
        (
            asked.nano_cpus > 0 && host.cpu_quota > 0,
            "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set",
        ),
        (
            asked.cpu_period > 0 && host.nano_cpus > 0,
            "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set",
        ),
        (
            asked.cpu_quota > 0 && host.nano_cpus > 0,
            "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set",
        ),
        (
            asked.memory != 0
                && asked.memory_swap == 0
                && host.memory_swap > 0
                && asked.memory > host.memory_swap,
            "Memory limit should be smaller than already set memoryswap limit, update the \
             memoryswap at the same time",
        ),
    ] {
        if is_there {
            return Err(Failure::bad_request(text));
        }
    }
    Ok(())
}

//! Signals, which CRI numbers in the order of the alphabet.

use berth_proto::v1;

/// The signal number of Linux. `None` for `RUNTIME_DEFAULT`.
pub(super) fn linux_signal(signal: v1::Signal) -> Option<i32> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_SIG")?;
    let min = nix::libc::SIGRTMIN();
    let max = nix::libc::SIGRTMAX();
    let number = |text: &str| text.parse::<i32>().ok();
    match name {
        "RTMIN" => Some(min),
        "RTMAX" => Some(max),
        // Second names of signals, which nix does not know (signal(7)).
        "CLD" => Some(nix::libc::SIGCHLD),
        "POLL" => Some(nix::libc::SIGIO),
        "IOT" => Some(nix::libc::SIGABRT),
        _ => name
            .strip_prefix("RTMINPLUS")
            .and_then(number)
            .map(|offset| min + offset)
            .or_else(|| name.strip_prefix("RTMAXMINUS").and_then(number).map(|offset| max - offset))
            .or_else(|| {
                format!("SIG{name}")
                    .parse::<nix::sys::signal::Signal>()
                    .ok()
                    .map(|signal| signal as i32)
            }),
    }
}

/// CRI's number of a signal of Linux; the first one if it has several names.
pub(super) fn cri_signal(number: i32) -> v1::Signal {
    let all = (1..=65).filter_map(|value| v1::Signal::try_from(value).ok());
    all.into_iter()
        .find(|signal| linux_signal(*signal) == Some(number))
        .unwrap_or(v1::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_cri_are_those_of_linux() {
        for (signal, number) in [
            (v1::Signal::RuntimeDefault, None),
            (v1::Signal::Sigterm, Some(15)),
            (v1::Signal::Sigrtmin, Some(34)),
            (v1::Signal::Sigrtminplus15, Some(49)),
            (v1::Signal::Sigrtmaxminus14, Some(50)),
            (v1::Signal::Sigrtmax, Some(64)),
        ] {
            assert_eq!(linux_signal(signal), number, "{signal:?}");
        }
        // Every one of them means something, and comes back as a name of the same signal.
        for value in 1..=65 {
            let number = linux_signal(v1::Signal::try_from(value).unwrap()).unwrap();
            assert_eq!(linux_signal(cri_signal(number)), Some(number));
        }
    }
}

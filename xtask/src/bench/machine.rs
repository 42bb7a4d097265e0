//! What figures depend on besides the program: the machine, and who else is busy on it.

use super::{Figure, Row, Suite};
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::fs;
use std::thread;
use std::time::Duration;

/// How long it is listened for others who are busy.
const LISTENING: Duration = Duration::from_secs(1);

/// What the figures are of.
pub(super) struct Machine(Vec<(&'static str, String)>);

impl Machine {
    pub(super) fn read() -> Result<Self> {
        ensure!(
            read("/proc/sys/kernel/bpf_stats_enabled") != "1",
            "the kernel keeps statistics of BPF programs, which takes longer than much of what is measured here: sysctl -w kernel.bpf_stats_enabled=0"
        );
        let processors = read("/proc/cpuinfo");
        let of_processor = |name: &str| {
            let mut lines = processors.lines();
            lines.find_map(|line| line.strip_prefix(name)?.split_once(": "))
        };
        let model = of_processor("model name").map_or("unknown", |(_, model)| model);
        let count = processors
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count();
        let flags = of_processor("flags").map_or("", |(_, flags)| flags);
        let is_virtual = flags.split(' ').any(|flag| flag == "hypervisor");
        let kind = if is_virtual {
            ", a virtual machine"
        } else {
            ""
        };
        let jit = match read("/proc/sys/net/core/bpf_jit_enable").as_str() {
            "0" => "off: the figures are of an interpreter".to_owned(),
            "1" => "on".to_owned(),
            other => other.to_owned(),
        };
        let hardening = read("/proc/sys/net/core/bpf_jit_harden");
        let mitigation =
            |name: &str| read(&format!("/sys/devices/system/cpu/vulnerabilities/{name}"));
        Ok(Self(vec![
            ("kernel", read("/proc/sys/kernel/osrelease")),
            ("processor", format!("{count} × {model}{kind}")),
            ("memory", memory()),
            ("JIT", format!("{jit}; hardening: {hardening}")),
            ("spectre_v1", mitigation("spectre_v1")),
            ("spectre_v2", mitigation("spectre_v2")),
            ("capabilities", capabilities(&read("/proc/self/status"))),
        ]))
    }

    pub(super) fn facts(&self) -> &[(&'static str, String)] {
        &self.0
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, is) in &self.0 {
            writeln!(f, "{what:<14}{is}")?;
        }
        Ok(())
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(
        |error| format!("unknown: {path}: {error}"),
        |text| text.trim().to_owned(),
    )
}

/// What of the capabilities that programs are loaded with this process has, by `/proc/self/status`.
fn capabilities(status: &str) -> String {
    // The bits of linux/capability.h.
    const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    let effective = status.lines().find_map(|line| {
        let digits = line.strip_prefix("CapEff:")?.trim();
        u64::from_str_radix(digits, 16).ok()
    });
    let Some(effective) = effective else {
        return "unknown".to_owned();
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    let (held, missing): (Vec<_>, Vec<_>) = NEEDED.iter().partition(|(_, bit)| has(*bit));
    let names = |of: Vec<(&str, u32)>| {
        let names: Vec<_> = of.into_iter().map(|(name, _)| name).collect();
        names.join(", ")
    };
    let mut text = names(held);
    if !missing.is_empty() {
        text += &format!(
            "; not {}: without CAP_PERFMON, the kernel adds instructions against speculation",
            names(missing)
        );
    }
    text
}

fn memory() -> String {
    let text = read("/proc/meminfo");
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok());
    total.map_or_else(
        || "unknown".to_owned(),
        |kib| format!("{:.1} GiB", kib as f64 / f64::from(1 << 20)),
    )
}

/// How busy the machine is with others, before it is measured on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise {
    /// Of one CPU, in percent.
    busy: f64,
    /// Of one CPU, in percent: what the hypervisor gave to others.
    stolen: f64,
}

/// What `/proc/stat` counts, in ticks: since the machine was started, over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ticks {
    pub(super) busy: u64,
    idle: u64,
    pub(super) stolen: u64,
}

impl Noise {
    /// Listens for a moment.
    pub(super) fn listen() -> Result<Self> {
        let cpus = thread::available_parallelism()?.get() as f64;
        let before = Ticks::parse(&fs::read_to_string("/proc/stat")?)?;
        thread::sleep(LISTENING);
        let after = Ticks::parse(&fs::read_to_string("/proc/stat")?)?;
        let busy = after.busy - before.busy;
        let stolen = after.stolen - before.stolen;
        let all = busy + stolen + (after.idle - before.idle);
        let percent = |ticks: u64| ticks as f64 * 100.0 * cpus / all.max(1) as f64;
        Ok(Self {
            busy: percent(busy),
            stolen: percent(stolen),
        })
    }

    pub(super) fn to_row(self, suite: Suite) -> Row {
        let taken = Some(Figure::Once(self.busy + self.stolen));
        Row::new(suite, "noise", "others took, of one CPU", taken, "%")
    }
}

impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { busy, stolen } = self;
        write!(
            f,
            "others took {busy:.0} % of a CPU, and the hypervisor {stolen:.0} %"
        )
    }
}

impl Ticks {
    pub(super) fn parse(stat: &str) -> Result<Self> {
        let line = stat
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("cpu "));
        let numbers: Vec<u64> = line
            .context("/proc/stat doesn't begin with the sum over all CPUs")?
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [
            user,
            nice,
            system,
            idle,
            waiting,
            interrupts,
            soft_interrupts,
            stolen,
            ..,
        ] = *numbers
        else {
            anyhow::bail!("/proc/stat has fewer columns than it should have");
        };
        Ok(Self {
            busy: user + nice + system + interrupts + soft_interrupts,
            idle: idle + waiting,
            stolen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_those_of_the_process() {
        let all = capabilities("Name:\txtask\nCapEff:\t000001ffffffffff\n");
        assert_eq!(all, "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF");
        let without = capabilities("CapPrm:\t000001ffffffffff\nCapEff:\t0000008000001000\n");
        assert!(
            without.starts_with("CAP_NET_ADMIN, CAP_BPF; not CAP_PERFMON: "),
            "{without}"
        );
        assert_eq!(capabilities(""), "unknown");
    }

    #[test]
    fn the_kernel_s_ticks_are_told_apart() {
        let ticks = Ticks::parse("cpu  1 2 4 8 16 32 64 128 256 512\ncpu0 1 1 1 1\n").unwrap();
        let expected = Ticks {
            busy: 1 + 2 + 4 + 32 + 64,
            idle: 8 + 16,
            stolen: 128,
        };
        assert_eq!(ticks, expected);
        assert!(Ticks::parse("intr 1 2 3\n").is_err());
    }
}

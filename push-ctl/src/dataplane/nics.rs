//! NICs that come, go and change while the program runs on others.
//!
//! Every change is a [`Step`] on one NIC, which leaves the links of all others, and all sessions, alone; its
//! opposite takes it back. What a NIC has counted goes with it: if it is attached again, it begins at zero.

use super::attach::{attach, load};
use super::pins::{assign_nic_index, free_nic_index, link_pin, pinned_map, write_meta};
use super::{
    Attached, CounterWords, Dataplane, Nic, NicRefusal, NicStatus, Reconfiguration, Settings,
};
use super::{link, netlink};
use anyhow::{Context, Result, anyhow};
use aya::maps::PerCpuValues;
use push_common::maps::{Counters, META, NicConfig, TICK_NS};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A change to one NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Attach to it.
    Attach(Nic),
    /// Put another program in place of the one it has: for other addresses, or another role.
    Replace(Nic),
    /// Detach from it.
    Detach(String),
}

impl Dataplane {
    /// Attaches to one more NIC.
    ///
    /// # Errors
    ///
    /// [`NicRefusal`]; everything is as it was then.
    pub async fn attach_nic(&mut self, nic: Nic) -> Result<(), NicRefusal> {
        let interface =
            interface_index(&nic.name).map_err(|_| NicRefusal::Unknown(nic.name.clone()))?;
        let step = match self.find(&nic.name) {
            None => Step::Attach(nic),
            Some(attached) if attached.interface == interface => {
                return Err(NicRefusal::AlreadyAttached(nic.name));
            }
            // The NIC went, and another one has its name now.
            Some(_) => Step::Replace(nic),
        };
        self.take_all(vec![step]).await?;
        Ok(())
    }

    /// Detaches from a NIC. Whatever is sent to devices through it is the kernel's to send from then on.
    ///
    /// # Errors
    ///
    /// [`NicRefusal`]; everything is as it was then.
    pub async fn detach_nic(&mut self, name: &str) -> Result<(), NicRefusal> {
        if self.find(name).is_none() {
            return Err(NicRefusal::NotAttached(name.to_owned()));
        }
        self.take_all(vec![Step::Detach(name.to_owned())]).await?;
        Ok(())
    }

    /// Changes all of this, or nothing.
    ///
    /// # Errors
    ///
    /// What was refused, and what couldn't be taken back.
    pub async fn reconfigure(&mut self, to: Reconfiguration) -> Result<()> {
        let Reconfiguration {
            nics,
            gone,
            idle_after,
        } = to;
        let idle_before = self.settings.idle_after;
        self.settings.idle_after = idle_after.unwrap_or(idle_before);
        let steps = self.steps(&nics, &gone, self.settings.idle_after != idle_before);
        let result = self.take_all_or_undo(steps, idle_before).await;
        if result.is_err() {
            self.settings.idle_after = idle_before;
        }
        result
    }

    /// Attaches anew to NICs that went and came back under their name, such as after their driver was
    /// loaded again. With `retry`, also tries those again that refused.
    pub async fn reattach(&mut self, retry: bool) {
        let retry = retry && !self.not_reattached.is_empty();
        if !self.next_hops.take_links_changed() && !retry {
            return;
        }
        let came_back = |attached: &&Arc<Attached>| {
            let link = self.next_hops.link_named(&attached.nic.name);
            link.is_some_and(|index| index != attached.interface)
        };
        let nics = self.attached.iter().filter(came_back);
        let nics: Vec<_> = nics.map(|attached| attached.nic.clone()).collect();
        let mut refused = BTreeMap::new();
        for nic in nics {
            let name = nic.name.clone();
            match self.replace(nic).await {
                Ok(_opposite) => tracing::info!(nic = name, "back, and attached"),
                Err(error) => {
                    let why = format!("{name} is back, and can't be attached to: {error:#}");
                    // Once for each reason, not each time that it is tried again.
                    if self.not_reattached.get(&name) != Some(&why) {
                        tracing::warn!("{why}; it is tried again");
                    }
                    refused.insert(name, why);
                }
            }
        }
        self.not_reattached = refused;
    }

    /// Addresses to which triggers are sent, of all NICs.
    #[must_use]
    pub fn trigger_addresses(&self) -> Vec<IpAddr> {
        self.attached
            .iter()
            .flat_map(|attached| attached.nic.trigger_addresses())
            .collect()
    }

    /// How the program is attached, asked of the kernel when it is waited for. Whoever does that needs nothing of
    /// this for it: the kernel may take its time, as long as some other change of a link goes on.
    ///
    /// # Errors
    ///
    /// The kernel can't be asked.
    pub fn nics(&self) -> impl Future<Output = Result<Vec<NicStatus>>> + Send + use<> {
        nics(self.attached.clone())
    }

    /// From how it is to how it is to be. Detaching comes last, as it can't be taken back without a trace.
    fn steps(&self, nics: &[Nic], gone: &[String], all_change: bool) -> Vec<Step> {
        let named: BTreeSet<_> = nics.iter().map(|nic| nic.name.clone()).collect();
        let others = self.attached.iter().map(|attached| &attached.nic);
        let others = others
            .filter(|nic| all_change && !named.contains(&nic.name) && !gone.contains(&nic.name))
            .map(|nic| Step::Replace(nic.clone()));
        let named = nics.iter().filter_map(|nic| match self.find(&nic.name) {
            None => Some(Step::Attach(nic.clone())),
            Some(attached) => {
                (all_change || attached.nic != *nic).then(|| Step::Replace(nic.clone()))
            }
        });
        let gone = gone.iter().filter(|name| self.find(name).is_some());
        let gone = gone.map(|name| Step::Detach(name.clone()));
        named.chain(others).chain(gone).collect()
    }

    async fn take_all(&mut self, steps: Vec<Step>) -> Result<()> {
        let idle_before = self.settings.idle_after;
        self.take_all_or_undo(steps, idle_before).await
    }

    /// Takes all steps. If one fails, those before it are taken back, with [`Settings::idle_after`] as it was.
    async fn take_all_or_undo(
        &mut self,
        steps: Vec<Step>,
        idle_before: Option<std::time::Duration>,
    ) -> Result<()> {
        let mut undo = Vec::new();
        for step in steps {
            match self.take(step).await {
                Ok(opposite) => undo.push(opposite),
                Err(mut error) => {
                    self.settings.idle_after = idle_before;
                    for step in undo.into_iter().rev() {
                        let what = format!("{step:?}");
                        if let Err(again) = self.take(step).await {
                            tracing::error!("taking back a change failed: {what}: {again:#}");
                            error = error.context(format!(
                                "what was changed before could not be taken back ({again:#}), so look at `push-ctl nic list`"
                            ));
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Takes a step and returns its opposite. If it fails, all is as before.
    async fn take(&mut self, step: Step) -> Result<Step> {
        match step {
            Step::Attach(nic) => self.attach_new(nic).await,
            Step::Replace(nic) => self.replace(nic).await,
            Step::Detach(name) => self.detach(&name),
        }
    }

    async fn attach_new(&mut self, nic: Nic) -> Result<Step> {
        let interface = interface_index(&nic.name)?;
        let mut meta = self.meta;
        let index = assign_nic_index(&mut meta, &nic.name)?;
        let config = nic_config(&nic, index, &self.settings);
        let program = load(&self.settings, &config)?;
        // What another NIC may have counted there.
        let zeros: CounterWords = [0; size_of::<Counters>() / 8];
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?;
        self.counters
            .set(index, PerCpuValues::try_from(vec![zeros; cpus])?, 0)
            .context("cannot write the counters")?;
        write_meta(pinned_map(&self.settings.pin_dir, META)?, &meta)?;
        match attach(&self.settings, &nic, interface, config, program).await {
            Ok(attached) => self.attached.push(Arc::new(attached)),
            Err(error) => {
                write_meta(pinned_map(&self.settings.pin_dir, META)?, &self.meta)?;
                return Err(error);
            }
        }
        self.meta = meta;
        self.follow();
        Ok(Step::Detach(nic.name))
    }

    async fn replace(&mut self, nic: Nic) -> Result<Step> {
        let at = self.position(&nic.name)?;
        let interface = interface_index(&nic.name)?;
        let before = Arc::clone(&self.attached[at]);
        let config = nic_config(&nic, before.config.index, &self.settings);
        let program = load(&self.settings, &config)?;
        let mut after = attach(&self.settings, &nic, interface, config, program).await?;
        if after.adopted {
            after.adopted = before.adopted;
            after.warning.clone_from(&before.warning);
        }
        self.attached[at] = Arc::new(after);
        self.follow();
        Ok(Step::Replace(before.nic.clone()))
    }

    fn detach(&mut self, name: &str) -> Result<Step> {
        let at = self.position(name)?;
        let attached = self.attached.remove(at);
        // First, as triggers that go out there would have no program to go through.
        self.follow();
        let pin = self.settings.pin_dir.join(link_pin(name));
        if let Err(error) = link::detach(&pin) {
            self.attached.insert(at, attached);
            self.follow();
            return Err(error.context(format!("cannot detach from {name}")));
        }
        // What isn't gone now, the next start removes.
        if let Err(error) = std::fs::remove_file(&pin) {
            tracing::warn!(nic = name, %error, "cannot remove {}", pin.display());
        }
        free_nic_index(&mut self.meta, name);
        let written =
            pinned_map(&self.settings.pin_dir, META).and_then(|map| write_meta(map, &self.meta));
        if let Err(error) = written {
            tracing::warn!(nic = name, "its index is not free yet: {error:#}");
        }
        tracing::info!(nic = name, "detached");
        Ok(Step::Attach(attached.nic.clone()))
    }

    /// Has everything else know which NICs there are.
    fn follow(&mut self) {
        let nics = self.attached.iter().map(|attached| attached.nic.clone());
        self.settings.nics = nics.collect();
        let names = self.settings.nics.iter().map(|nic| nic.name.clone());
        for (id, next_hop) in self.next_hops.set_nics(names.collect()) {
            self.sessions.set_next_hop(id, next_hop);
        }
    }

    fn find(&self, name: &str) -> Option<&Arc<Attached>> {
        let mut all = self.attached.iter();
        all.find(|attached| attached.nic.name == name)
    }

    fn position(&self, name: &str) -> Result<usize> {
        let mut all = self.attached.iter();
        all.position(|attached| attached.nic.name == name)
            .with_context(|| format!("not attached to {name}"))
    }
}

pub(super) fn nic_config(nic: &Nic, index: u32, settings: &Settings) -> NicConfig {
    let flag = |condition, flag| if condition { flag } else { 0 };
    let idle_ticks = settings.idle_after.map_or(0, |idle| {
        u32::try_from(idle.as_nanos().div_ceil(u128::from(TICK_NS))).unwrap_or(u32::MAX)
    });
    NicConfig {
        index,
        trigger_port: settings.trigger_port.to_be_bytes(),
        takes: flag(nic.ipv4.is_some(), NicConfig::IPV4)
            | flag(nic.ipv6.is_some(), NicConfig::IPV6)
            | flag(nic.takes_acks, NicConfig::ACKS),
        reserved: 0,
        ipv4: nic.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
        idle_ticks,
        ipv6: nic.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
    }
}

pub(super) fn interface_index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(|_| {
        anyhow!("there is no NIC {name} in this network namespace; `ip -br link` lists them, and `name` in [[nic]] picks one")
    })
}

async fn nics(attached: Vec<Arc<Attached>>) -> Result<Vec<NicStatus>> {
    let mut all = Vec::new();
    for attached in attached {
        let link = attached
            .link
            .info()
            .context("cannot ask the kernel about a link")?;
        let seen = netlink::attached_program(attached.interface).await?;
        let mode = seen
            .filter(|seen| seen.program_id == link.program_id())
            .map_or("none", |seen| seen.mode);
        all.push(NicStatus {
            name: attached.nic.name.clone(),
            index: attached.interface,
            takes_triggers: attached.nic.takes_triggers(),
            takes_acks: attached.nic.takes_acks,
            trigger_addresses: attached.nic.trigger_addresses().collect(),
            mode,
            program_id: link.program_id(),
            link_id: link.id(),
            adopted: attached.adopted,
        });
    }
    Ok(all)
}

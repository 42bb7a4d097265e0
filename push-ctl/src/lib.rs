//! The controller of push, and its operator's command line.
//!
//! # Layout
//!
//! | module | holds |
//! | --- | --- |
//! | [`config`] | the configuration file |
//! | [`reload`] | the configuration in force, and how another one comes to be |
//! | [`sessions`] | the lifecycle of terminals and sessions, as a pure state machine |
//! | [`store`] | what survives a restart |
//! | [`dataplane`] | the XDP program and its maps; nothing else imports aya |
//! | [`audit`] | who did what, for good |
//! | [`events`] | what happens, as it happens |
//! | [`controller`] | the one owner of these three, and how it is asked |
//! | [`internal`] | CoAP for devices |
//! | [`credentials`] | by what application servers identify themselves |
//! | [`external`] | HTTPS for application servers |
//! | [`monitoring`] | looks after application servers |
//! | [`admin`] | HTTP on a unix socket for the operator |
//! | [`metrics`] | figures and health for machines that watch |
//! | [`emulate`] | devices, for those who integrate and to put load on all of it |
//! | [`doctor`] | what push needs of a machine, looked at |
//! | [`upgrade`] | another push-ctl takes the place of this one |
//! | `durations` | lengths of time as people read them |
//! | [`service`] | what the service manager is told |
//! | [`cli`] | the command line: starts the daemon, or asks it |
//!
//! Requests come in by `internal`, `external` and `admin`, which take them apart and put them to the
//! controller; it has `sessions` decide, and carries the outcome to `store` and `dataplane`.

// What needs unsafe code is in `dataplane`, for memory that is shared with the kernel, and in `doctor`, for one call.
#[forbid(unsafe_code)]
pub mod admin;
mod admission;
#[forbid(unsafe_code)]
pub mod audit;
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod controller;
#[forbid(unsafe_code)]
pub mod credentials;
pub mod dataplane;
pub mod doctor;
mod durations;
#[forbid(unsafe_code)]
pub mod emulate;
#[forbid(unsafe_code)]
pub mod events;
#[forbid(unsafe_code)]
pub mod external;
#[cfg(test)]
mod fuzz;
#[forbid(unsafe_code)]
pub mod internal;
#[forbid(unsafe_code)]
pub mod listen;
#[forbid(unsafe_code)]
pub mod metrics;
#[forbid(unsafe_code)]
pub mod monitoring;
#[forbid(unsafe_code)]
pub mod problem;
#[forbid(unsafe_code)]
pub mod random;
#[forbid(unsafe_code)]
pub mod reload;
#[forbid(unsafe_code)]
pub mod service;
#[forbid(unsafe_code)]
pub mod sessions;
#[forbid(unsafe_code)]
pub mod store;
#[forbid(unsafe_code)]
pub mod upgrade;

use anyhow::{Context, Result, bail};
use config::Config;
use controller::{Outlets, Places};
use dataplane::Dataplane;
use events::{Bus, What};
use monitoring::{Enquirer, Hints};
use reload::InForce;
use sessions::records::RealmName;
use sessions::{Limits, Sessions};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{RedbStore, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{Level, info, warn};
use upgrade::{Ended, Upgrade};

/// How long requests that are being answered may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(5);

/// How long the controller may take to write the replay windows of all sessions that got triggers since the last
/// time, unless it is upgraded: shorter than systemd's patience.
const LAST_WRITES: Duration = Duration::from_secs(20);

/// Messages to devices that wait to be sent, at most.
const NOTICES_LEN: usize = 65_536;

/// Runs the controller until `shutdown` is through, or `upgrade` is wanted. The data plane stays as it is then. At
/// each SIGHUP the configuration is read anew.
///
/// # Errors
///
/// Something that is needed can't be had, or fails. Up to the message `push is ready` nothing is changed
/// that wasn't changed by an earlier run, but for what the data plane says of itself.
pub async fn run(
    config: Config,
    upgrade: Upgrade,
    shutdown: impl Future<Output = ()>,
) -> Result<Ended> {
    // What may fail without having changed anything comes first, the data plane last.
    let begun = Instant::now();
    let store = RedbStore::open(&config.state_dir, config.key_encryption_key()?)?;
    let store_path = store.path().to_owned();
    let image = store.load()?;
    info!(
        took_ms = begun.elapsed().as_millis(),
        terminals = image.terminals.len(),
        sessions = image.sessions.len(),
        "the store is read and in order"
    );
    let begun = Instant::now();
    let sessions = Sessions::restore(limits(&config), image)?;
    info!(
        took_ms = begun.elapsed().as_millis(),
        "its records are in memory"
    );
    let clock = controller::Clock::resume(&config.state_dir);
    let names: Vec<IpAddr> = config.external.listen.iter().map(SocketAddr::ip).collect();
    let tls = external::tls::server_config(&config.external, &config.state_dir, &names)?;
    let enquirer = Enquirer::new(config.monitoring.ca.as_deref())?;
    let internal = internal_listeners(&config)?;
    let external = listen::tcp("external.listen", &config.external.listen)?;
    let for_machines = listen::tcp("metrics.listen", &config.metrics.listen)?;
    let socket = admin::Socket::bind(&config.admin_socket)?;
    let audit = audit::Log::open(audit::Settings {
        file: config.audit_file(),
        max_bytes: config.audit.max_bytes,
        keep: config.audit.keep,
    })?;
    let _flushed = FlushAtEnd(audit.clone());
    let dataplane = Dataplane::open(settings(&config)).await?;
    for warning in dataplane.warnings() {
        warn!("{warning}");
    }
    let events = Bus::audited(audit);
    let (notices, for_devices_unasked) = mpsc::channel(NOTICES_LEN);
    let outlets = Outlets {
        notices,
        events: events.clone(),
    };
    let notices_waiting = outlets.notices.downgrade();
    let notice_counters = internal::NoticeCounters::default();
    let unheard = events.clone();
    let (controller, mut ended) =
        controller::start(sessions, store, dataplane, places(&config), outlets, clock)?;

    let (stop, stopping) = watch::channel(false);
    let stopped = || {
        let mut stopping = stopping.clone();
        async move {
            // The sender is dropped at the very end at the latest.
            let _dropped = stopping.wait_for(|&stop| stop).await;
        }
    };
    let outgoing = internal::Outgoing {
        notices: for_devices_unasked,
        unanswered: Box::new(move |notice| {
            unheard.publish_now(What::NoticeUnanswered {
                to: notice.to,
                notice: notice.kind.label(),
                session: notice.kind.session(),
                terminal: notice.kind.registration(),
            });
        }),
        counters: notice_counters.clone(),
    };
    let for_devices = internal::serve(
        internal,
        controller.clone(),
        config.triggers.keep_source,
        outgoing,
    );
    let hints = Hints::default();
    let monitoring = monitoring::run(controller.clone(), hints.clone(), enquirer);
    let for_applications = external::serve(
        external,
        tls,
        controller.clone(),
        config.triggers.port,
        hints.clone(),
        stopped(),
    );
    let in_force = Arc::new(InForce::new(
        config.clone(),
        controller.clone(),
        events.clone(),
    ));
    let hangups = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let daemon = admin::Daemon {
        config,
        in_force: Arc::clone(&in_force),
        store: store_path,
        monitoring: hints,
        started: Instant::now(),
        started_at: jiff::Timestamp::now(),
        upgrade: upgrade.clone(),
        events,
    };
    let sources = metrics::Sources {
        controller: controller.clone(),
        daemon: daemon.clone(),
        notices: notices_waiting,
        notice_counters,
    };
    let for_machines = metrics::serve(for_machines, sources, stopped());
    let for_operators = admin::serve(&socket, controller.clone(), daemon, stopped());
    let servers = async {
        let for_devices = async {
            tokio::select! {
                result = for_devices => result,
                () = stopped() => Ok(()),
            }
        };
        let until_stopped = stopped();
        let for_hangups = async move {
            tokio::select! {
                () = in_force.reload_at(hangups) => {}
                () = until_stopped => {}
            }
            Ok(())
        };
        let monitoring = async {
            tokio::select! {
                result = monitoring => result.map_err(io::Error::other),
                () = stopped() => Ok(()),
            }
        };
        tokio::try_join!(
            for_devices,
            for_applications,
            for_operators,
            for_machines,
            for_hangups,
            monitoring
        )
    };
    tokio::pin!(servers);
    info!("push is ready");
    service::ready();

    let how = tokio::select! {
        () = shutdown => Ended::Stopped,
        () = upgrade.wanted() => Ended::ForUpgrade,
        result = &mut servers => {
            result.context("a listener failed")?;
            bail!("all listeners have ended");
        }
        result = &mut ended => {
            result.context("the controller has stopped")??;
            bail!("the controller has stopped");
        }
        never = service::answer_for(&controller) => match never {},
    };
    info!("stopping; the data plane goes on delivering");
    match how {
        Ended::Stopped => service::stopping(),
        Ended::ForUpgrade => {
            service::reloading();
            controller.expect_successor();
        }
    }
    // The thread of the controller ends when nobody can ask any more.
    drop(controller);
    stop.send_replace(true);
    if timeout(GRACE, servers).await.is_err() {
        warn!("some requests were not answered in time");
    }
    match timeout(LAST_WRITES, ended).await {
        Ok(result) => result.context("the controller has stopped")??,
        Err(_elapsed) => warn!("the controller was still busy"),
    }
    Ok(how)
}

/// Whatever way the daemon ends, what happened is on disk then.
struct FlushAtEnd(audit::Log);

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        self.0.flush(GRACE);
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        slots: config.sessions.slots,
        default_lifetime: config.sessions.default_lifetime,
        max_lifetime: config.sessions.max_lifetime,
        sessions_per_terminal: config.sessions.per_terminal,
        triggers_per_second_per_terminal: config
            .sessions
            .triggers_per_second_per_terminal
            .map(NonZeroU32::get),
        rotation_overlap: config.sessions.rotation_overlap,
    }
}

fn settings(config: &Config) -> dataplane::Settings {
    dataplane::Settings {
        pin_dir: config.pin_dir.clone(),
        session_slots: config.sessions.slots,
        trigger_port: config.triggers.port,
        keep_source: config.triggers.keep_source,
        allow_generic: config.data_plane.allow_generic,
        require_perfmon: config.data_plane.require_perfmon,
        nics: config.nic.iter().map(Into::into).collect(),
        realms: config
            .realm
            .iter()
            .map(|realm| dataplane::Realm {
                name: realm.name.to_string(),
                interface: realm.interface.clone(),
                routers: realm.next_hop.clone(),
                link: realm.router_mac.map(|router_mac| dataplane::RealmLink {
                    router_mac,
                    vlan: std::array::from_fn(|n| realm.vlan.get(n).copied().unwrap_or(0)),
                }),
            })
            .collect(),
        gtpu: dataplane::Gtpu {
            ipv4: config.gtpu.ipv4(),
            ipv6: config.gtpu.ipv6(),
        },
        idle_after: config.data_plane.idle_after,
        log_level: config.data_plane.log_level.unwrap_or(Level::INFO),
    }
}

fn internal_listeners(config: &Config) -> Result<Vec<internal::Listener>> {
    let of = |realm: Option<&RealmName>, sockets: Vec<UdpSocket>| {
        let realm = realm.cloned();
        sockets.into_iter().map(move |socket| internal::Listener {
            realm: realm.clone(),
            socket,
            #[cfg(feature = "coaps")]
            keys: None,
        })
    };
    let outside = listen::udp("internal.listen", &config.internal.listen)?;
    let mut listeners: Vec<_> = of(None, outside).collect();
    #[cfg(feature = "coaps")]
    listeners.extend(secured_listeners(config)?);
    for realm in &config.realm {
        let key = format!("realm.{}", realm.name);
        let sockets = listen::udp_by_interface(&key, &realm.interface, &realm.listen)?;
        listeners.extend(of(Some(&realm.name), sockets));
    }
    Ok(listeners)
}

#[cfg(feature = "coaps")]
fn secured_listeners(config: &Config) -> Result<Vec<internal::Listener>> {
    let Some(path) = &config.internal.coaps_keys else {
        return Ok(Vec::new());
    };
    let keys = internal::Keys::read(path)?;
    let devices = keys.len();
    warn!(
        devices,
        "internal.coaps_listen is experimental: CoAP over DTLS is on"
    );
    let sockets = listen::udp("internal.coaps_listen", &config.internal.coaps_listen)?;
    let secured = |socket| internal::Listener {
        realm: None,
        socket,
        keys: Some(keys.clone()),
    };
    Ok(sockets.into_iter().map(secured).collect())
}

fn places(config: &Config) -> Places {
    let internal = [&*config.internal.listen, &*config.internal.coaps_listen].concat();
    config
        .realm
        .iter()
        .fold(Places::new(&internal), |places, realm| {
            places.and_realm(&realm.name, &realm.listen)
        })
}

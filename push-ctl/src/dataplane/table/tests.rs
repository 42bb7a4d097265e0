use super::*;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

const SLOTS: u32 = 64;

/// Memory like that of the two maps.
struct Maps {
    sessions: OwnedFd,
    staged: OwnedFd,
}

impl Maps {
    fn new() -> Self {
        let memory = |records: usize| {
            let memory = memfd_create(c"records", MFdFlags::empty()).unwrap();
            ftruncate(&memory, (records * size_of::<SessionRecord>()) as i64).unwrap();
            memory
        };
        Self {
            sessions: memory(SLOTS as usize),
            staged: memory(1),
        }
    }

    fn table(&self) -> SessionTable {
        SessionTable::map(self.sessions.as_fd(), self.staged.as_fd(), SLOTS).unwrap()
    }
}

/// An image all of whose parts tell which it is.
fn image(which: u8) -> SessionImage {
    SessionImage {
        id: SessionId::new(3, 77),
        device: SocketAddr::new([10, which, which, which].into(), 0x0101 * u16::from(which)),
        source: "10.0.0.1:5683".parse().unwrap(),
        realm: None,
        tunnel: None,
        policy: u16::from(which),
        token_generation: which,
        key: TagKey::from_bytes([which; 16]).into(),
        previous_key: None,
        window: [0; 4],
        expires_in: Duration::from_secs(1000),
    }
}

/// What a packet on another CPU would act on, read as the program reads it.
fn read_as_packet(table: &SessionTable, id: SessionId) -> Option<(SessionControl, [u8; 16], u8)> {
    let record = table.record(id.slot()).unwrap();
    for _ in 0..1000 {
        // SAFETY: the record is in the map; the words are those that `install` stores at once.
        unsafe {
            let control = control_word(record).load(Ordering::Acquire);
            let seen: SessionControl = bytemuck::must_cast(control);
            let whole = if seen.has(SessionControl::STAGED) {
                table.staged()
            } else {
                record
            };
            let read: SessionControl =
                bytemuck::must_cast(control_word(whole).load(Ordering::Acquire));
            let key = (&raw const (*whole).key).read_volatile();
            let address = (&raw const (*whole).device_address).read_volatile();
            fence(Ordering::SeqCst);
            if control_word(record).load(Ordering::Acquire) == control {
                return Some((read, key.to_bytes(), address[1]));
            }
        }
    }
    None
}

#[test]
fn a_packet_sees_all_of_a_change_or_nothing() {
    let maps = Maps::new();
    let table = maps.table();
    table.install(&image(1), 1, false, 0);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut reads, mut seen) = (0_u64, [0_u64; 256]);
            while !is_over.load(Ordering::Relaxed) {
                let (control, key, address) =
                    read_as_packet(&table, image(1).id).expect("a read comes to an end");
                let which = control.token_generation;
                assert_eq!(key, [which; 16], "half a change");
                assert_eq!(address, which, "half a change");
                assert_eq!(control.policy, u16::from(which), "half a change");
                assert_eq!(control.next_hop, u16::from(which), "half a change");
                seen[usize::from(which)] += 1;
                reads += 1;
            }
            (reads, seen)
        });
        for round in 0..200_000_u32 {
            let which = (round % 7 + 1) as u8;
            table.install(&image(which), u16::from(which), false, 0);
        }
        is_over.store(true, Ordering::Relaxed);
        let (reads, seen) = reader.join().unwrap();
        assert!(reads > 0 && seen.iter().sum::<u64>() == reads);
    });
}

#[test]
fn a_change_that_was_interrupted_anywhere_is_finished_by_the_next_process() {
    let maps = Maps::new();
    let id = image(1).id;
    {
        let table = maps.table();
        table.install(&image(1), 1, false, 0);
        // As `install` leaves it when it is killed right after it has announced the change.
        // SAFETY: the records are in the map.
        unsafe {
            let staged = table.staged();
            let new = first_line(&image(2), 2, false, 0);
            write_fields(staged, &new);
            let control = new.control.with_version(4);
            control_word(staged).store(bytemuck::must_cast(control), Ordering::Relaxed);
            let elsewhere = SessionControl {
                flags: SessionControl::STAGED,
                ..SessionControl::default()
            };
            let record = table.record(id.slot()).unwrap();
            control_word(record).store(
                bytemuck::must_cast(elsewhere.with_version(3)),
                Ordering::Relaxed,
            );
        }
        let (control, key, _) = read_as_packet(&table, id).unwrap();
        assert_eq!((control.next_hop, key), (2, [2; 16]), "meanwhile");
    }
    let table = maps.table();
    let control = table.control(id).unwrap();
    assert!(!control.has(SessionControl::STAGED));
    let (read, key, address) = read_as_packet(&table, id).unwrap();
    assert_eq!((read, key, address), (control, [2; 16], 2));
    assert_eq!(control.next_hop, 2);
}

#[test]
fn a_change_keeps_what_the_path_has_written_and_a_new_session_does_not() {
    let maps = Maps::new();
    let table = maps.table();
    let id = image(1).id;
    table.install(&image(1), 1, false, 0);
    // SAFETY: the record is in the map.
    unsafe {
        let record = table.record(id.slot()).unwrap();
        (*record).packets = 5;
        (*record).refused = 6;
        (*record).replay = [7; 4];
        (*record).activity = 9 << 32;
    }
    table.install(&image(2), 2, false, 0);
    table.set_next_hop(id, 9);
    let activity = table.activity(id).unwrap();
    assert_eq!(
        (
            activity.packets,
            activity.refused,
            activity.last_delivered_ns
        ),
        (5, 6, 9 * TICK_NS)
    );
    assert_eq!(table.control(id).unwrap().next_hop, 9);

    table.remove(id);
    assert!(table.activity(id).is_none() && table.installed().next().is_none());
    let next = SessionImage {
        id: SessionId::new(id.slot(), 78),
        ..image(3)
    };
    table.install(&next, 1, false, 0);
    let activity = table.activity(next.id).unwrap();
    assert_eq!((activity.packets, activity.refused), (0, 0));
    // SAFETY: as above.
    unsafe {
        let record = table.record(id.slot()).unwrap();
        assert_eq!((*record).replay, [0; 4]);
    }
    table.remove(id);
    assert_eq!(table.installed().collect::<Vec<_>>(), [next.id]);
}

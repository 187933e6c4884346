//! Suppression of notifications both ways, against an oracle that counts.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::ring::passes_event;

/// Whether an entry went in at `event` when `count` were added from `old` on.
fn oracle(event: u16, old: u16, count: u16) -> bool {
    (0..count).any(|i| old.wrapping_add(i) == event)
}

#[test]
fn the_formula_is_the_sentence_of_the_standard() {
    for old in [0_u16, 1, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        for count in 0..=9 {
            for event in 0..=u16::MAX {
                let new = old.wrapping_add(count);
                assert_eq!(
                    passes_event(event, new, old),
                    oracle(event, old, count),
                    "event {event} old {old} count {count}"
                );
            }
        }
    }
}

/// The biggest batch: compared by distance, as the oracle would take too long.
#[test]
fn the_formula_holds_for_the_biggest_batch() {
    let (old, count) = (0xfff0_u16, 32768_u16);
    for event in 0..=u16::MAX {
        let new = old.wrapping_add(count);
        assert_eq!(
            passes_event(event, new, old),
            event.wrapping_sub(old) < count
        );
    }
}

/// Pushes and publishes `count` chains; whether the driver wants to be notified.
fn use_chains(pair: &mut Pair<Little>, count: u16) -> bool {
    let mut chain = Chain::default();
    for _ in 0..count {
        pair.driver.add(&[writable(DATA, 1)]).unwrap();
    }
    pair.driver.publish();
    for _ in 0..count {
        assert!(pair.device.pop(&mut chain).unwrap());
        pair.device.push_used(chain.head, 1).unwrap();
    }
    let notify = pair.device.publish().unwrap();
    while pair.driver.pop_used().unwrap().is_some() {}
    notify
}

/// split.unotif.d4, d5, d6, and split.anotif.r5, r6, r7 the other way
#[test]
fn event_indices_are_met_exactly() {
    for start in [0_u16, 0x7ffc, 0xfffa, 0xffff] {
        let mut pair = Pair::<Little>::new(RingConfig {
            next_avail: start,
            event_idx: true,
            ..little(8)
        });
        for count in 1..=8 {
            for distance in -10..=10_i16 {
                let old = pair.device.next_used();
                let event = old.wrapping_add_signed(distance);
                pair.driver.want_notification_at(event);
                // Flags mean nothing with EVENT_IDX.
                let flags = (distance & 1) as u16;
                set_flags(&pair, flags);
                assert_eq!(use_chains(&mut pair, count), oracle(event, old, count));
            }
        }
        set_flags(&pair, 0);
        // Nothing was pushed, so there is nothing to hear of, not even at the event index.
        pair.driver.want_notifications();
        assert!(!pair.device.publish().unwrap());
    }
}

/// Sets `flags` of both rings, over both sides' heads.
fn set_flags(pair: &Pair<Little>, flags: u16) {
    let map = pair.memory.load();
    let config = little(8);
    for area in [config.driver, config.device] {
        map.write(area, &flags.to_le_bytes()).unwrap();
    }
}

/// split.anotif.d2, d4 with r3..r7: what the device asks for is what the driver does.
#[test]
fn kicks_come_when_they_were_asked_for() {
    for event_idx in [false, true] {
        let mut pair = Pair::<Little>::new(RingConfig {
            event_idx,
            next_avail: 0xfffd,
            ..little(8)
        });
        let mut chain = Chain::default();
        for _ in 0..10 {
            assert!(!pair.device.want_kicks().unwrap());
            pair.driver.add(&[writable(DATA, 1)]).unwrap();
            assert!(pair.driver.publish(), "kick for the first");
            pair.device.suppress_kicks().unwrap();
            pair.driver.add(&[writable(DATA, 1)]).unwrap();
            assert!(!pair.driver.publish(), "none while suppressed");
            assert!(pair.device.want_kicks().unwrap(), "two are there");
            pair.device.suppress_kicks().unwrap();
            while pair.device.pop(&mut chain).unwrap() {
                pair.device.push_used(chain.head, 1).unwrap();
            }
            pair.device.publish().unwrap();
            while pair.driver.pop_used().unwrap().is_some() {}
        }
    }
}

/// split.unotif.d1, d2, d3
#[test]
fn without_event_idx_the_flag_decides_and_the_event_index_does_not() {
    let mut pair = Pair::<Little>::new(little(8));
    let config = little(8);
    for event in 0..20_u16 {
        let used_event = config.driver + 4 + 2 * 8;
        let map = pair.memory.load();
        map.write(used_event, &event.to_le_bytes()).unwrap();
        pair.driver.suppress_notifications();
        assert!(!use_chains(&mut pair, 1 + event % 3));
        pair.driver.want_notifications();
        assert!(use_chains(&mut pair, 1 + event % 3));
    }
}

/// split.anotif.d1, d3: flags are 0 or 1, and 0 with EVENT_IDX; event fields only with it.
#[test]
fn the_device_writes_what_it_may() {
    for event_idx in [false, true] {
        let config = RingConfig {
            event_idx,
            ..little(8)
        };
        let mut pair = Pair::<Little>::new(config);
        let map = pair.memory.load();
        let avail_event = config.device + 4 + 8 * 8;
        map.write(avail_event, &[0x5a, 0x5a]).unwrap();
        let read = |pair: &mut Pair<Little>, suppress: bool| {
            if suppress {
                pair.device.suppress_kicks().unwrap();
            } else {
                pair.device.want_kicks().unwrap();
            }
            let flags = map.load_u16_acquire(config.device).unwrap();
            (flags, map.load_u16_acquire(avail_event).unwrap())
        };
        let suppressed = u16::from(!event_idx).to_le();
        assert_eq!(read(&mut pair, true), (suppressed, 0x5a5a));
        let event = if event_idx { 0 } else { 0x5a5a };
        assert_eq!(read(&mut pair, false), (0, event));
        assert_eq!(read(&mut pair, true), (suppressed, event));
    }
}

#[test]
fn the_available_index_alone_says_whether_to_sleep() {
    let mut pair = Pair::<Little>::new(little(8));
    assert!(!pair.device.want_kicks().unwrap());
    pair.driver.add(&[writable(DATA, 1)]).unwrap();
    assert!(!pair.device.want_kicks().unwrap(), "not published");
    pair.driver.publish();
    assert!(pair.device.want_kicks().unwrap());
}

/// Both sides sleep whenever they may. A barrier too few and, sooner or later, both sleep.
#[test]
fn nobody_sleeps_for_ever() {
    const CHAINS: u32 = 30_000;
    let patience = Duration::from_secs(20);
    for event_idx in [false, true] {
        let config = RingConfig {
            event_idx,
            ..little(4)
        };
        let Pair {
            mut driver,
            mut device,
            ..
        } = Pair::<Little>::new(config);
        let (kick, kicked) = mpsc::channel();
        let (call, called) = mpsc::channel();
        let server = thread::spawn(move || {
            let mut chain = Chain::default();
            let mut served = 0;
            while served < CHAINS {
                device.suppress_kicks().unwrap();
                while device.pop(&mut chain).unwrap() {
                    device.push_used(chain.head, served).unwrap();
                    served += 1;
                    if device.publish().unwrap() {
                        call.send(()).unwrap();
                    }
                }
                if served < CHAINS && !device.want_kicks().unwrap() {
                    kicked.recv_timeout(patience).expect("a kick was lost");
                }
            }
        });
        let mut added = 0;
        let mut back = 0;
        while back < CHAINS {
            driver.suppress_notifications();
            while added < CHAINS && driver.free() > 0 {
                driver.add(&[writable(DATA, 1)]).unwrap();
                added += 1;
                if driver.publish() {
                    // The server may be done, with all chains, before it hears of the last.
                    let _ = kick.send(());
                }
            }
            while let Some((_, number)) = driver.pop_used().unwrap() {
                assert_eq!(number, back);
                back += 1;
            }
            let waiting = driver.free() == 0 || added == CHAINS;
            if waiting && back < CHAINS && !driver.want_notifications() {
                called
                    .recv_timeout(patience)
                    .expect("a notification was lost");
            }
        }
        server.join().unwrap();
    }
}

/// Lets two threads go on at the same moment, as nearly as can be.
#[derive(Default)]
struct Meeting(AtomicU32);

impl Meeting {
    /// `turn` counts a thread's meetings from 1.
    fn meet(&self, turn: u32) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let mut spins = 0;
        while self.0.load(Ordering::SeqCst) < 2 * turn {
            spins += 1;
            if spins % 1000 == 0 {
                assert!(spins < 1_000_000_000, "the other side is gone");
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

/// One side publishes while the other makes ready to sleep: either the first is told to notify or
/// the second sees what is there. Both ways, many times; split.supply.r3 and its mirror image.
#[test]
fn who_publishes_and_who_goes_to_sleep_never_miss_each_other() {
    const TURNS: u32 = 10_000;
    for event_idx in [false, true] {
        let config = RingConfig {
            event_idx,
            ..little(4)
        };
        let Pair {
            mut driver,
            mut device,
            ..
        } = Pair::<Little>::new(config);
        let meeting = Meeting::default();
        let (awake, told) = (AtomicBool::new(false), AtomicBool::new(false));
        let (mut lost_kicks, mut lost_notifications) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut chain = Chain::default();
                for turn in 0..TURNS {
                    device.suppress_kicks().unwrap();
                    meeting.meet(4 * turn + 1);
                    let seen = device.want_kicks().unwrap();
                    awake.store(seen, Ordering::Relaxed);
                    meeting.meet(4 * turn + 2);
                    assert!(device.pop(&mut chain).unwrap());
                    device.push_used(chain.head, turn).unwrap();
                    meeting.meet(4 * turn + 3);
                    let notify = device.publish().unwrap();
                    told.store(notify, Ordering::Relaxed);
                    meeting.meet(4 * turn + 4);
                }
            });
            for turn in 0..TURNS {
                driver.add(&[writable(DATA, 1)]).unwrap();
                driver.suppress_notifications();
                meeting.meet(4 * turn + 1);
                let kick = driver.publish();
                meeting.meet(4 * turn + 2);
                lost_kicks += u32::from(!kick && !awake.load(Ordering::Relaxed));
                meeting.meet(4 * turn + 3);
                let seen = driver.want_notifications();
                meeting.meet(4 * turn + 4);
                lost_notifications += u32::from(!seen && !told.load(Ordering::Relaxed));
                assert!(driver.pop_used().unwrap().is_some());
            }
        });
        assert_eq!((lost_kicks, lost_notifications), (0, 0), "of {TURNS}");
    }
}

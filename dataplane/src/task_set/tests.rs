use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::time::Duration;

use super::Attribute::{Aca, HeadOfQueue, Ordered, Simple};
use super::*;

const PLAIN: [u8; 16] = [0; 16];
const NACA: [u8; 16] = [0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const PREEMPTING: [u8; 16] = [0x5f, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Commands by name, all on the medium unless said otherwise.
struct Bench {
    set: TaskSet,
    part: Part,
    /// Woken, in that order.
    log: Arc<Mutex<Vec<(char, Role)>>>,
    inside: HashMap<char, Role>,
    tickets: HashMap<char, u64>,
}

impl Bench {
    fn new() -> Self {
        Self::limited(0)
    }

    fn limited(limit: u32) -> Self {
        Self {
            set: TaskSet::new(limit),
            part: Part::default(),
            log: Arc::default(),
            inside: HashMap::new(),
            tickets: HashMap::new(),
        }
    }

    fn send(&mut self, attribute: Attribute, name: char) -> Result<bool, Refusal> {
        let log = self.log.clone();
        let arrival = Arrival {
            attribute,
            cdb: &PLAIN,
            shares: false,
        };
        let wake = || -> Box<dyn FnOnce(Role) + Send> {
            Box::new(move |role| log.lock().unwrap().push((name, role)))
        };
        Ok(match self.set.enter(&self.part, &arrival, wake)? {
            Admission::Enabled(role, _) => {
                self.inside.insert(name, role);
                true
            }
            Admission::Dormant(ticket) => {
                self.tickets.insert(name, ticket);
                false
            }
        })
    }

    /// Whether it is enabled at once.
    fn enter(&mut self, attribute: Attribute, name: char) -> bool {
        self.send(attribute, name).unwrap()
    }

    /// Ends these, one after the other; who is enabled by that.
    fn end(&mut self, names: &str) -> String {
        for name in names.chars() {
            let role = self.inside.remove(&name).unwrap();
            self.set.leave(&self.part, role, None);
        }
        self.woken()
    }

    fn woken(&mut self) -> String {
        let woken: Vec<_> = self.log.lock().unwrap().drain(..).collect();
        self.inside.extend(woken.iter().copied());
        woken.iter().map(|(name, _)| name).collect()
    }

    fn cancel(&mut self, name: char) -> bool {
        self.set.cancel(&self.part, self.tickets[&name])
    }

    fn is_open(&self) -> bool {
        self.set.word.load(Ordering::SeqCst) & (ORDER | TURN) == 0
    }
}

/// What another nexus gets.
fn try_enter(
    set: &TaskSet,
    part: &Part,
    attribute: Attribute,
    cdb: &[u8],
) -> Result<Admission, Refusal> {
    let arrival = Arrival {
        attribute,
        cdb,
        shares: false,
    };
    set.enter(part, &arrival, || Box::new(drop))
}

#[test]
fn ordered_waits_for_older_ones_and_holds_younger_ones() {
    let mut bench = Bench::new();
    assert!(bench.enter(Simple, 'a') && bench.enter(Simple, 'b'));
    assert!(!bench.enter(Ordered, 'c'));
    assert!(!bench.enter(Simple, 'd') && !bench.enter(Ordered, 'e') && !bench.enter(Simple, 'f'));
    assert_eq!(bench.end("b"), "");
    assert_eq!(bench.end("a"), "c");
    assert_eq!(bench.end("c"), "d");
    assert_eq!(bench.end("d"), "e");
    assert_eq!(bench.end("e"), "f");
    assert!(bench.is_open() && bench.enter(Simple, 'g'));
    assert_eq!(bench.end("fg"), "");
    assert!(bench.enter(Ordered, 'h') && !bench.enter(Simple, 'i'));
}

#[test]
fn head_of_queue_goes_before_all_that_does_not_run() {
    let mut bench = Bench::new();
    assert!(bench.enter(Simple, 'a') && !bench.enter(Ordered, 'b') && !bench.enter(Simple, 'c'));
    assert!(bench.enter(HeadOfQueue, 'd') && bench.enter(HeadOfQueue, 'e'));
    assert_eq!(bench.end("a"), "", "both heads still run");
    assert_eq!(bench.end("d"), "");
    assert_eq!(bench.end("e"), "b");
    assert!(bench.enter(HeadOfQueue, 'f'), "beside an ORDERED one, too");
    assert_eq!(bench.end("b"), "");
    assert_eq!(bench.end("f"), "c");
    assert!(bench.is_open());
    assert!(bench.enter(HeadOfQueue, 'g') && !bench.enter(Simple, 'h'));
    assert_eq!(bench.end("g"), "h");
}

#[test]
fn a_cancelled_command_holds_nobody() {
    let mut bench = Bench::new();
    assert!(bench.enter(Simple, 'a') && !bench.enter(Ordered, 'b') && !bench.enter(Simple, 'c'));
    assert!(bench.cancel('b'));
    assert_eq!(bench.woken(), "c");
    assert!(!bench.cancel('b') && !bench.cancel('c'), "gone, and woken");
    assert!(bench.is_open());
}

#[test]
fn restricted_reordering_keeps_simple_ones_in_order() {
    let mut bench = Bench::new();
    bench.set.restrict_reordering(true);
    assert!(bench.enter(Simple, 'a') && !bench.enter(Simple, 'b') && !bench.enter(Simple, 'c'));
    assert_eq!(bench.end("a"), "b");
    bench.set.restrict_reordering(false);
    assert!(!bench.enter(Simple, 'd'));
    assert_eq!(bench.end("b"), "c", "it came under the old rule");
    assert_eq!(bench.end("c"), "d");
    assert!(bench.is_open());
}

#[test]
fn nothing_begins_while_the_set_is_held() {
    let mut bench = Bench::new();
    let before = bench.set.stamp();
    let stamp = bench.set.hold();
    assert!(before <= stamp);
    assert!(!bench.enter(Simple, 'a') && bench.set.stamp() > stamp);
    bench.set.hold();
    bench.set.resume();
    assert_eq!(bench.woken(), "");
    bench.set.resume();
    assert_eq!(bench.woken(), "a");
    assert!(bench.is_open());
}

#[test]
fn a_full_set_says_so_and_is_busy_for_others() {
    let mut bench = Bench::limited(2);
    assert!(bench.enter(Simple, 'a') && !bench.enter(Ordered, 'b'));
    for attribute in [Simple, Ordered, HeadOfQueue] {
        assert_eq!(bench.send(attribute, 'c'), Err(Refusal::TaskSetFull));
        let other = Part::default();
        let refused = try_enter(&bench.set, &other, attribute, &PLAIN);
        assert_eq!(refused, Err(Refusal::Busy), "it has none in the set");
    }
    assert_eq!(bench.end("a"), "b");
    assert!(!bench.enter(Simple, 'd') && bench.cancel('d'));
    assert_eq!(bench.end("b"), "");
    assert!(bench.is_open() && bench.enter(Simple, 'e') && bench.enter(Simple, 'f'));
    assert_eq!(bench.send(Simple, 'g'), Err(Refusal::TaskSetFull));
    assert_eq!(bench.end("ef"), "");
    assert_eq!(bench.part.commands.load(Ordering::SeqCst), 0);
}

// ── Auto contingent allegiance ─────────────────────────────────────────────────────────────────

impl Bench {
    fn fail(&mut self, name: char, naca: bool) {
        let role = self.inside.get_mut(&name).unwrap();
        self.set.check_condition(&self.part, role, naca);
        self.end(&name.to_string());
    }
}

#[test]
fn aca_stops_the_set_until_it_is_cleared() {
    let mut bench = Bench::new();
    assert_eq!(bench.send(Aca, 'x'), Err(Refusal::InvalidMessage));
    assert!(bench.enter(Simple, 'a') && bench.enter(Simple, 'b') && !bench.enter(Ordered, 'c'));
    bench.fail('a', true);
    assert!(bench.set.faulted(&bench.part) && bench.set.has_aca());
    assert_eq!(bench.end("b"), "", "nothing new is enabled");
    for attribute in [Simple, Ordered, HeadOfQueue] {
        assert_eq!(bench.send(attribute, 'x'), Err(Refusal::AcaActive));
    }
    assert!(bench.enter(Aca, 'd'));
    assert_eq!(
        bench.send(Aca, 'x'),
        Err(Refusal::AcaActive),
        "one at a time"
    );
    assert_eq!(bench.end("d"), "");
    assert!(bench.enter(Aca, 'e'));
    assert_eq!(bench.end("e"), "");
    assert!(bench.set.clear_aca(&bench.part));
    assert_eq!(bench.woken(), "c");
    assert!(!bench.set.clear_aca(&bench.part));
    bench.end("c");
    assert!(bench.is_open());
}

#[test]
fn others_are_told_that_an_aca_is_active() {
    let mut bench = Bench::new();
    assert!(bench.enter(Simple, 'a'));
    bench.fail('a', true);
    let other = Part::default();
    let entered = |attribute, cdb| try_enter(&bench.set, &other, attribute, cdb);
    assert_eq!(entered(Simple, &PLAIN), Err(Refusal::Busy));
    assert_eq!(entered(HeadOfQueue, &PLAIN), Err(Refusal::Busy));
    assert_eq!(entered(Ordered, &NACA), Err(Refusal::AcaActive));
    assert_eq!(entered(Aca, &PLAIN), Err(Refusal::AcaActive));
    let preempting = entered(Simple, &PREEMPTING);
    assert_eq!(preempting, Ok(Admission::Enabled(Simple, None)));
    assert_eq!(bench.send(Simple, 'x'), Err(Refusal::AcaActive));
    assert!(!bench.set.clear_aca(&other) && !bench.set.faulted(&other));
}

#[test]
fn a_failing_aca_command_clears_the_condition_and_may_set_it_anew() {
    let mut bench = Bench::new();
    bench.enter(Simple, 'a');
    bench.fail('a', true);
    bench.enter(Aca, 'b');
    bench.fail('b', true);
    assert!(bench.set.faulted(&bench.part));
    assert!(bench.enter(Aca, 'c'), "the failed one is not counted");
    bench.fail('c', false);
    assert!(!bench.set.has_aca() && bench.is_open());
}

#[test]
fn naca_is_found_in_cdbs_of_every_length() {
    for (opcode, control) in [
        (0x00, 5),
        (0x28, 9),
        (0x5f, 9),
        (0x7f, 1),
        (0x88, 15),
        (0xa8, 11),
    ] {
        let mut cdb = [0xfb; 16];
        cdb[0] = opcode;
        let others = [1, 5, 9, 11, 15].into_iter().filter(|at| *at != control);
        others.for_each(|at| cdb[at] = 0xff);
        assert!(!naca(&cdb), "{opcode:#x}");
        cdb[control] = 4;
        assert!(naca(&cdb), "{opcode:#x}");
    }
    assert!(!naca(&[0xff; 16]), "vendor specific");
}

// ── Turns on the medium ────────────────────────────────────────────────────────────────────────

/// Takes a turn and says whether at once; later turns are noted under `name`.
fn take(set: &TaskSet, turn: Turn, name: char, log: &Arc<Mutex<String>>) -> bool {
    let log = log.clone();
    set.take_turn(turn, || Box::new(move || log.lock().unwrap().push(name)))
}

#[test]
fn shared_ones_run_together_and_an_exclusive_one_alone() {
    let (set, log) = (TaskSet::new(0), Arc::default());
    assert!(take(&set, Turn::Shared, 'a', &log));
    assert!(take(&set, Turn::Shared, 'b', &log));
    assert!(!take(&set, Turn::Exclusive, 'c', &log));
    set.leave_turn(Turn::Shared);
    assert_eq!(*log.lock().unwrap(), "");
    set.leave_turn(Turn::Shared);
    assert_eq!(*log.lock().unwrap(), "c");
    assert!(!take(&set, Turn::Shared, 'd', &log));
    assert!(!take(&set, Turn::Exclusive, 'e', &log));
    set.leave_turn(Turn::Exclusive);
    assert_eq!(*log.lock().unwrap(), "cd");
    set.leave_turn(Turn::Shared);
    set.leave_turn(Turn::Exclusive);
    assert_eq!(*log.lock().unwrap(), "cde");
    assert!(take(&set, Turn::Exclusive, 'f', &log), "open again");
}

#[test]
fn nobody_overtakes() {
    let (set, log) = (TaskSet::new(0), Arc::default());
    assert!(take(&set, Turn::Exclusive, 'a', &log));
    for (turn, name) in [
        (Turn::Shared, 'b'),
        (Turn::Shared, 'c'),
        (Turn::Exclusive, 'd'),
        (Turn::Shared, 'e'),
    ] {
        assert!(!take(&set, turn, name, &log));
    }
    set.leave_turn(Turn::Exclusive);
    assert_eq!(*log.lock().unwrap(), "bc");
    assert!(!take(&set, Turn::Shared, 'f', &log));
    set.leave_turn(Turn::Shared);
    set.leave_turn(Turn::Shared);
    assert_eq!(*log.lock().unwrap(), "bcd");
    set.leave_turn(Turn::Exclusive);
    assert_eq!(*log.lock().unwrap(), "bcdef");
}

#[test]
fn a_simple_media_command_has_its_turn_with_its_place() {
    let (set, part) = (TaskSet::new(0), Part::default());
    let arrival = Arrival {
        attribute: Simple,
        cdb: &PLAIN,
        shares: true,
    };
    let enter = || set.enter(&part, &arrival, || Box::new(drop)).unwrap();
    assert_eq!(enter(), Admission::Enabled(Simple, Some(Turn::Shared)));
    let log = Arc::default();
    assert!(!take(&set, Turn::Exclusive, 'x', &log));
    assert_eq!(
        enter(),
        Admission::Enabled(Simple, None),
        "enabled all the same"
    );
    set.leave(&part, Simple, Some(Turn::Shared));
    assert_eq!(*log.lock().unwrap(), "x");
    set.leave(&part, Simple, None);
    set.leave_turn(Turn::Exclusive);
    assert_eq!(set.word.load(Ordering::SeqCst), 0);
}

// ── Under contention ───────────────────────────────────────────────────────────────────────────

/// Four threads send commands of all kinds: whatever waits is woken, ORDERED ones are alone but
/// for HEAD OF QUEUE, exclusive ones alone on the medium, and nothing is left over.
#[test]
fn everything_ends_under_contention() {
    const HEAD: usize = 1 << 48;
    const ORDERED: usize = 1 << 32;
    const SIMPLE: usize = 1;
    let set = Arc::new(TaskSet::new(0));
    let inside = Arc::new(AtomicUsize::new(0));
    let medium = Arc::new(AtomicUsize::new(0));
    let waited = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..4u32)
        .map(|n| {
            let (set, inside, medium) = (set.clone(), inside.clone(), medium.clone());
            let waited = waited.clone();
            std::thread::spawn(move || {
                let part = Part::default();
                let (told, mine) = mpsc::channel();
                let wait = || {
                    waited.fetch_add(1, Ordering::Relaxed);
                    mine.recv_timeout(Duration::from_secs(10))
                        .expect("it is never woken")
                };
                for i in 0..3_000u32 {
                    let attribute = match (i * 7 + n) % 11 {
                        0 | 1 => Ordered,
                        2 => HeadOfQueue,
                        _ => Simple,
                    };
                    let turn = match i % 5 {
                        0 => Turn::Exclusive,
                        _ => Turn::Shared,
                    };
                    let arrival = Arrival {
                        attribute,
                        cdb: &PLAIN,
                        shares: turn == Turn::Shared,
                    };
                    let admission = set.enter(&part, &arrival, || {
                        let told = told.clone();
                        Box::new(move |role| told.send(role).unwrap())
                    });
                    let (role, mut held) = match admission.unwrap() {
                        Admission::Enabled(role, turn) => (role, turn),
                        // Some give up, some too late.
                        Admission::Dormant(ticket) => match i % 3 == 0 && set.cancel(&part, ticket)
                        {
                            true => continue,
                            false => (wait(), None),
                        },
                    };
                    let me = match role {
                        HeadOfQueue => HEAD,
                        Ordered => ORDERED,
                        _ => SIMPLE,
                    };
                    let before = inside.fetch_add(me, Ordering::SeqCst) % HEAD;
                    match role {
                        Ordered => assert_eq!(before, 0, "an ORDERED one is not alone"),
                        Simple => assert!(before < ORDERED, "beside an ORDERED one"),
                        _ => {}
                    }
                    if held.is_none() {
                        let told = told.clone();
                        if !set.take_turn(turn, || Box::new(move || told.send(Simple).unwrap())) {
                            wait();
                        }
                        held = Some(turn);
                    }
                    let alone = if turn == Turn::Exclusive { 1 } else { 1 << 32 };
                    let others = medium.fetch_add(alone, Ordering::SeqCst);
                    match turn {
                        Turn::Exclusive => assert_eq!(others, 0),
                        Turn::Shared => assert_eq!(others & 0xffff_ffff, 0),
                    }
                    // Others come meanwhile, whatever the scheduler thinks.
                    std::thread::yield_now();
                    medium.fetch_sub(alone, Ordering::SeqCst);
                    if i % 97 == 0 {
                        set.hold();
                        set.resume();
                    }
                    inside.fetch_sub(me, Ordering::SeqCst);
                    set.leave(&part, role, held);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(set.word.load(Ordering::SeqCst), 0);
    let waited = waited.load(Ordering::SeqCst);
    assert!(waited > 100, "{waited} waited: that proves nothing");
}

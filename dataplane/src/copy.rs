//! Moving blocks from one logical unit to another, or within one: EXTENDED COPY, WRITE USING TOKEN.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{mpsc, Arc};

use crate::engine::watched::Watch;
use crate::engine::{AlignedBuffer, Io, IoKind, CHUNK};
use crate::lu::Lu;
use crate::turn::Turn;

/// The source is not any more what it was when its token was made.
#[derive(Debug, thiserror::Error)]
#[error("the source has changed")]
pub struct SourceChanged;

/// One piece, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub from: u64,
    pub to: u64,
    pub len: u64,
}

/// Runs once; others may watch it or end it early meanwhile.
pub struct Copy {
    target: Arc<Lu>,
    /// `None`: zeros.
    source: Option<Arc<Lu>>,
    runs: Vec<Run>,
    /// The copy is on stable storage when it ends.
    durable: bool,
    unless: Option<Arc<Watch>>,
    copied: AtomicU64,
    cancelled: AtomicBool,
}

impl Copy {
    /// The pieces are copied in order, each as if all of it were read before the first byte is
    /// written. `unless`: the copy fails with [`SourceChanged`] rather than take what came later.
    pub fn new(
        target: Arc<Lu>,
        source: Option<Arc<Lu>>,
        runs: Vec<Run>,
        durable: bool,
        unless: Option<Arc<Watch>>,
    ) -> Self {
        Self {
            target,
            source,
            runs,
            durable,
            unless,
            copied: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
        }
    }

    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Bytes copied without a gap from the beginning.
    pub fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// `run` ends with `Interrupted` soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Blocks; for a thread that may. Ranges are checked before the first byte is moved.
    pub fn run(&self) -> io::Result<()> {
        let inside = |start: u64, len: u64, lu: &Lu| {
            let end = start.checked_add(len);
            end.is_some_and(|end| end <= lu.engine.size())
        };
        let possible = self.runs.iter().all(|run| {
            let source = self.source.as_ref();
            inside(run.to, run.len, &self.target)
                && source.is_none_or(|source| inside(run.from, run.len, source))
        });
        if !possible {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let longest = self.runs.iter().map(|run| run.len).max().unwrap_or(0);
        // At most CHUNK, which is a usize.
        let mut buffer = AlignedBuffer::zeroed(longest.min(CHUNK as u64) as usize)?;
        self.runs
            .iter()
            .try_for_each(|run| self.copy(run, &mut buffer))
    }

    fn copy(&self, run: &Run, buffer: &mut AlignedBuffer) -> io::Result<()> {
        let chunks = run.len.div_ceil(CHUNK as u64);
        let within = self
            .source
            .as_ref()
            .is_some_and(|source| Arc::ptr_eq(source, &self.target));
        // Upwards, the copy would run over what it has not read yet.
        let downwards = within && run.to > run.from;
        for step in 0..chunks {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let chunk = if downwards { chunks - 1 - step } else { step };
            let done = chunk * CHUNK as u64;
            let len = (run.len - done).min(CHUNK as u64);
            self.chunk(run.from + done, run.to + done, len, buffer)?;
            if !downwards {
                self.copied.fetch_add(len, Ordering::Relaxed);
            }
        }
        if downwards {
            self.copied.fetch_add(run.len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// No exclusive command runs between what is read and what is written.
    fn chunk(&self, from: u64, to: u64, len: u64, buffer: &mut AlignedBuffer) -> io::Result<()> {
        let _turns = self.turns();
        let iov = [buffer.iovec(len as usize)];
        let call = |kind, offset, durable| Io {
            kind,
            offset,
            len,
            durable,
        };
        let Some(source) = &self.source else {
            let zero = call(IoKind::Zero, to, self.durable);
            return self.target.engine.run(&zero, &[]).map(drop);
        };
        source.engine.run(&call(IoKind::Read, from, false), &iov)?;
        if self.unless.as_ref().is_some_and(|watch| watch.changed()) {
            return Err(io::Error::other(SourceChanged));
        }
        let write = call(IoKind::Write, to, self.durable);
        self.target.engine.run(&write, &iov).map(drop)
    }

    /// On both units, always in the same order: two copies that go opposite ways do not each wait
    /// for what the other has.
    fn turns(&self) -> (Entered<'_>, Option<Entered<'_>>) {
        match &self.source {
            Some(source) if !Arc::ptr_eq(source, &self.target) => {
                let (first, second) = match Arc::as_ptr(source) < Arc::as_ptr(&self.target) {
                    true => (source, &self.target),
                    false => (&self.target, source),
                };
                let first = Entered::wait(first);
                (first, Some(Entered::wait(second)))
            }
            _ => (Entered::wait(&self.target), None),
        }
    }
}

/// A turn on a logical unit beside its other commands.
struct Entered<'a>(&'a Lu);

impl<'a> Entered<'a> {
    fn wait(lu: &'a Lu) -> Self {
        let (told, mine) = mpsc::sync_channel(1);
        let at_once = lu.tasks.take_turn(Turn::Shared, || {
            Box::new(move || {
                // Fails only if nobody waits any more.
                let _ = told.send(());
            })
        });
        if !at_once {
            // `TaskSet` calls every waker that it keeps.
            let _ = mine.recv();
        }
        Self(lu)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.tasks.leave_turn(Turn::Shared);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::engine::memory::MemoryEngine;
    use crate::engine::watched::WatchedEngine;
    use crate::lu::RouteTable;
    use crate::sbc::tests::policy;

    const SIZE: u64 = 4 * CHUNK as u64;

    fn unit() -> Arc<Lu> {
        let memory = Arc::new(MemoryEngine::new(SIZE).unwrap());
        Arc::new(Lu::new(
            Arc::new(WatchedEngine::new(memory)),
            policy(512, SIZE / 512),
            RouteTable::new(&[0; 256], &HashMap::new(), &[]).unwrap(),
            0,
        ))
    }

    fn access(lu: &Lu, kind: IoKind, bytes: &mut AlignedBuffer) {
        let io = Io {
            kind,
            offset: 0,
            len: SIZE,
            durable: false,
        };
        lu.engine.run(&io, &[bytes.iovec(SIZE as usize)]).unwrap();
    }

    fn filled(lu: &Lu) -> Vec<u8> {
        let mut bytes = AlignedBuffer::zeroed(SIZE as usize).unwrap();
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = (n % 251) as u8;
        }
        access(lu, IoKind::Write, &mut bytes);
        bytes.to_vec()
    }

    fn contents(lu: &Lu) -> Vec<u8> {
        let mut bytes = AlignedBuffer::zeroed(SIZE as usize).unwrap();
        access(lu, IoKind::Read, &mut bytes);
        bytes.to_vec()
    }

    fn run(from: u64, to: u64, len: u64) -> Run {
        Run { from, to, len }
    }

    fn copy(source: &Arc<Lu>, target: &Arc<Lu>, runs: &[Run]) -> Copy {
        let source = Some(source.clone());
        Copy::new(target.clone(), source, runs.to_vec(), false, None)
    }

    #[test]
    fn between_units() {
        let (source, target) = (unit(), unit());
        let bytes = filled(&source);
        let len = 2 * CHUNK as u64 + 512;
        let copy = copy(&source, &target, &[run(512, 4096, len), run(0, 512, 512)]);
        copy.run().unwrap();
        assert_eq!(copy.copied(), len + 512);
        let mut expected = vec![0; SIZE as usize];
        expected[4096..][..len as usize].copy_from_slice(&bytes[512..][..len as usize]);
        expected[512..1024].copy_from_slice(&bytes[..512]);
        assert!(contents(&target) == expected);
    }

    #[test]
    fn overlapping_ranges_are_not_smeared() {
        let len = 3 * CHUNK as u64 - 512;
        for (from, to) in [
            (0, 512),
            (512, 0),
            (0, CHUNK as u64),
            (CHUNK as u64, 0),
            (7, 7),
        ] {
            let unit = unit();
            let mut expected = filled(&unit);
            expected.copy_within(from as usize..(from + len) as usize, to as usize);
            copy(&unit, &unit, &[run(from, to, len)]).run().unwrap();
            assert!(contents(&unit) == expected, "{from} to {to}");
        }
    }

    #[test]
    fn zeros() {
        let unit = unit();
        let mut expected = filled(&unit);
        expected[512..1024].fill(0);
        let zeros = Copy::new(unit.clone(), None, vec![run(0, 512, 512)], true, None);
        zeros.run().unwrap();
        assert!(contents(&unit) == expected);
    }

    #[test]
    fn nothing_to_copy() {
        let unit = unit();
        copy(&unit, &unit, &[run(SIZE, 0, 0)]).run().unwrap();
        copy(&unit, &unit, &[]).run().unwrap();
    }

    #[test]
    fn ranges_outside_change_nothing() {
        let (source, target) = (unit(), unit());
        filled(&source);
        for (from, to) in [(1, 0), (0, 1), (u64::MAX, 0), (0, u64::MAX)] {
            let error = copy(&source, &target, &[run(0, 0, 512), run(from, to, SIZE)])
                .run()
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        assert!(contents(&target).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_has_changed_is_not_copied() {
        let (source, target) = (unit(), unit());
        let watch = Arc::new(Watch::new(vec![(0, SIZE)]));
        filled(&source);
        source.engine.watch(&watch);
        let copy = |lu: &Arc<Lu>| {
            let (source, watch) = (Some(source.clone()), Some(watch.clone()));
            Copy::new(lu.clone(), source, vec![run(0, 0, SIZE)], false, watch)
        };
        copy(&target).run().unwrap();
        filled(&source);
        let other = unit();
        let late = copy(&other);
        let error = late.run().unwrap_err();
        assert!(error.get_ref().unwrap().is::<SourceChanged>());
        assert_eq!(late.copied(), 0);
        assert!(contents(&other).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_cancelled_copy_stops() {
        let (source, target) = (unit(), unit());
        filled(&source);
        let copy = copy(&source, &target, &[run(0, 0, SIZE)]);
        copy.cancel();
        let error = copy.run().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert_eq!(copy.copied(), 0);
    }

    #[test]
    fn an_exclusive_command_is_waited_for_and_waits() {
        let (source, target) = (unit(), unit());
        filled(&source);
        for lu in [&source, &target] {
            assert!(lu.tasks.take_turn(Turn::Exclusive, || Box::new(|| ())));
            let copy = Arc::new(copy(&source, &target, &[run(0, 0, 512)]));
            let running = copy.clone();
            let thread = thread::spawn(move || running.run());
            thread::sleep(Duration::from_millis(50));
            assert_eq!(copy.copied(), 0);
            lu.tasks.leave_turn(Turn::Exclusive);
            thread.join().unwrap().unwrap();
            assert_eq!(copy.copied(), 512);
        }
    }

    #[test]
    fn copies_that_go_opposite_ways_do_not_block_each_other() {
        let (one, two) = (unit(), unit());
        let (told, ended) = mpsc::channel();
        for (from, to) in [(one.clone(), two.clone()), (two.clone(), one.clone())] {
            let told = told.clone();
            thread::spawn(move || {
                for _ in 0..2_000 {
                    copy(&from, &to, &[run(0, 512, 512)]).run().unwrap();
                }
                told.send(()).unwrap();
            });
        }
        for lu in [one, two] {
            let told = told.clone();
            thread::spawn(move || {
                for _ in 0..2_000 {
                    let (tell, mine) = mpsc::channel();
                    if !lu
                        .tasks
                        .take_turn(Turn::Exclusive, || Box::new(move || tell.send(()).unwrap()))
                    {
                        mine.recv().unwrap();
                    }
                    lu.tasks.leave_turn(Turn::Exclusive);
                }
                told.send(()).unwrap();
            });
        }
        for _ in 0..4 {
            ended.recv_timeout(Duration::from_secs(30)).unwrap();
        }
    }
}

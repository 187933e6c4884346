//! One command on its way: cut into pieces that the host takes, in order, and put together again.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use libc::iovec;

use super::attention::{GONE, REFUSED};
use super::limits::Limits;
use super::node::{Call, Completion, Direction};
use super::status::{judge, BUSY, CHECK_CONDITION, CONDITION_MET, GOOD};
use super::{command, sense, unmap, Passed, Passthrough, Rule};
use crate::engine::{total, trim, AlignedBuffer, Cursor, CHUNK};
use crate::sbc::cdb::{Cdb, Command, INVALID_OPCODE};
use crate::sense::{build, key, SenseInfo};
use crate::wire::{S_BAD_TARGET, S_OK, S_OVERRUN, S_TRANSPORT_FAILURE};

const DATA_PHASE_ERROR: SenseInfo = SenseInfo::new(key::ABORTED_COMMAND, 0x4b00);
const RECOVERED_ERROR: u8 = 0x1;
/// Pieces end at multiples of it where they can: larger physical blocks are common.
const ROUND: u64 = 4096;

/// What is handed to the host in one call.
pub struct Piece {
    cdb: Vec<u8>,
    direction: Direction,
    iov: Vec<iovec>,
    len: u32,
    timeout_ms: u32,
    /// The data, where it is not where the guest has it.
    bounce: Option<AlignedBuffer>,
    blocks: u64,
}

// SAFETY: the iovecs point into `bounce`, or into memory that the caller keeps mapped.
unsafe impl Send for Piece {}

impl Piece {
    pub fn call(&self) -> Call<'_> {
        Call {
            cdb: &self.cdb,
            direction: self.direction,
            iov: &self.iov,
            len: self.len,
            timeout_ms: self.timeout_ms,
        }
    }
}

pub enum Next {
    Piece(Piece),
    Done(Passed),
}

/// How a command may be cut.
enum Shape {
    Whole,
    Blocks {
        /// Bytes of data of each block; 0: one block of data serves all.
        unit: u64,
        /// Blocks a piece.
        most: u64,
        done: u64,
    },
    Unmap(unmap::Pieces),
}

pub struct Transfer {
    cdb: Vec<u8>,
    parsed: Option<Cdb>,
    rule: Rule,
    limits: Arc<Limits>,
    direction: Direction,
    data: Data,
    shape: Shape,
    /// Bytes a piece; fewer after the host refused one.
    most: u64,
    /// The host refused the guest's own buffers.
    must_bounce: bool,
    split: bool,
    bounced: bool,
    /// The last one's.
    recovered: Option<Vec<u8>>,
    end: Option<Passed>,
}

// SAFETY: the iovecs point into memory that the caller keeps mapped, wherever this moves.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Checks a command; an error is the answer to it.
    pub fn new(
        device: &Passthrough,
        cdb: &[u8],
        data_out: &[iovec],
        data_in: &[iovec],
    ) -> Result<Self, Passed> {
        let limits = device.limits();
        let check = |info| check_condition(device, info);
        let cdb = command::exact(&limits, cdb).map_err(check)?;
        let rule = device.rules[usize::from(cdb[0])];
        let (mut direction, buffer) = match (total(data_out), total(data_in)) {
            (0, 0) => (Direction::None, data_in),
            (_, 0) => (Direction::ToDevice, data_out),
            _ => (Direction::FromDevice, data_in),
        };
        let mut data = buffer.to_vec();
        let given = total(&data);
        let block_size = u64::from(device.block_size.load(Ordering::Relaxed));
        let parsed = match rule.blocks && block_size > 0 {
            true => Cdb::parse(&cdb).ok(),
            false => None,
        };
        let unit = parsed.map_or(0, |cdb| command::unit(&cdb, block_size, given));
        let needed = match &parsed {
            Some(cdb) => command::data(cdb, unit),
            None => command::length(&cdb, &rule)
                .filter(|_| direction == Direction::ToDevice)
                .map(|len| (direction, len)),
        };
        if let Some((wanted, len)) = needed {
            if len > 0 && (wanted != direction || len > given) {
                return Err(transport(S_OVERRUN));
            }
            trim(&mut data, len);
        }
        data.retain(|piece| piece.iov_len > 0);
        if data.is_empty() {
            direction = Direction::None;
        }
        let shape = shape(&limits, parsed.as_ref(), unit, &data);
        let mut transfer = Self {
            cdb,
            parsed,
            rule,
            direction,
            data: Data::new(data),
            shape,
            most: limits.most(),
            must_bounce: false,
            limits,
            split: false,
            bounced: false,
            recovered: None,
            end: None,
        };
        transfer.check(device).map_err(check)?;
        Ok(transfer)
    }

    /// Before the first piece goes out: whether any can, and whether the last one will.
    fn check(&mut self, device: &Passthrough) -> Result<(), SenseInfo> {
        let splits = match self.shape {
            Shape::Unmap(_) => return Ok(()),
            Shape::Blocks { unit, most, .. } => {
                let count = self.parsed.map_or(0, |cdb| cdb.count);
                if unit > self.most {
                    return Err(self.too_long());
                }
                count > most || count * unit > self.most
            }
            Shape::Whole if self.data.len > self.most => return Err(self.too_long()),
            Shape::Whole => false,
        };
        // Of a command that goes as one, the device says so itself.
        let capacity = device.blocks.load(Ordering::Relaxed);
        if let Some(cdb) = self.parsed.filter(|_| splits && capacity > 0) {
            let end = cdb.lba.checked_add(cdb.count);
            if end.is_none_or(|end| end > capacity) {
                return Err(cdb.lba_out_of_range(cdb.lba.max(capacity)));
            }
        }
        self.split = splits;
        Ok(())
    }

    fn too_long(&self) -> SenseInfo {
        match &self.parsed {
            Some(cdb) => cdb.invalid_count(),
            None => command::invalid_length(&self.cdb, &self.rule),
        }
    }

    /// The next piece. Its buffers stay where they are until [`Transfer::ended`] is told of it.
    pub fn next(&mut self, device: &Passthrough) -> Next {
        if self.end.is_none() {
            match self.piece() {
                Ok(piece) => return Next::Piece(piece),
                // Memory is short here as it may be on the host.
                Err(_) => self.end = Some(self.status(BUSY)),
            }
        }
        let counters = &device.counters;
        for (happened, counter) in [
            (self.split, &counters.split),
            (self.bounced, &counters.bounced),
        ] {
            if happened {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        Next::Done(self.end.take().unwrap_or_else(|| self.status(BUSY)))
    }

    fn piece(&mut self) -> io::Result<Piece> {
        if let Shape::Unmap(pieces) = &self.shape {
            let list = pieces.list();
            let mut cdb = self.cdb.clone();
            if let Some(parsed) = &self.parsed {
                parsed.set_range(&mut cdb, parsed.lba, list.len() as u64);
            }
            let mut buffer = AlignedBuffer::zeroed(list.len())?;
            buffer[..list.len()].copy_from_slice(&list);
            let iov = vec![buffer.iovec(list.len())];
            return Ok(self.made(cdb, iov, Some(buffer), 0));
        }
        let mut blocks = self.blocks(self.most);
        let mut iov = self.data.peek(self.bytes(blocks));
        if iov.is_empty() || (!self.must_bounce && self.limits.take(&iov)) {
            return Ok(self.made(self.part(blocks), iov, None, blocks));
        }
        blocks = self.blocks(self.most.min(CHUNK as u64));
        iov = self.data.peek(self.bytes(blocks));
        let len = total(&iov) as usize;
        let mut buffer = AlignedBuffer::zeroed(len)?;
        if self.direction == Direction::ToDevice {
            Cursor::new(&iov).read(&mut buffer[..len]);
        }
        self.bounced = true;
        let iov = vec![buffer.iovec(len)];
        Ok(self.made(self.part(blocks), iov, Some(buffer), blocks))
    }

    fn made(
        &self,
        cdb: Vec<u8>,
        iov: Vec<iovec>,
        bounce: Option<AlignedBuffer>,
        blocks: u64,
    ) -> Piece {
        Piece {
            cdb,
            direction: self.direction,
            len: total(&iov) as u32,
            iov,
            timeout_ms: self.rule.timeout_s.saturating_mul(1000),
            bounce,
            blocks,
        }
    }

    /// How many blocks go into a piece of at most `bytes`; at least one.
    fn blocks(&self, bytes: u64) -> u64 {
        let (Shape::Blocks { unit, most, done }, Some(cdb)) = (&self.shape, &self.parsed) else {
            return 0;
        };
        let left = cdb.count - done;
        let blocks = left.min(*most).min(match unit {
            0 => u64::MAX,
            unit => (bytes / unit).max(1),
        });
        let round = match unit {
            0 => 1,
            unit => (ROUND / unit).max(1),
        };
        let over = cdb.lba.wrapping_add(done + blocks) % round;
        match blocks < left && over < blocks {
            true => blocks - over,
            false => blocks,
        }
    }

    /// Bytes of data of a piece.
    fn bytes(&self, blocks: u64) -> u64 {
        match self.shape {
            Shape::Blocks { unit: 1.., .. } => blocks * self.unit(),
            _ => self.data.len,
        }
    }

    fn unit(&self) -> u64 {
        match self.shape {
            Shape::Blocks { unit, .. } => unit,
            _ => 0,
        }
    }

    /// The CDB of a piece.
    fn part(&self, blocks: u64) -> Vec<u8> {
        let mut cdb = self.cdb.clone();
        if let (Shape::Blocks { done, .. }, Some(parsed)) = (&self.shape, &self.parsed) {
            if blocks < parsed.count {
                parsed.set_range(&mut cdb, parsed.lba + done, blocks);
            }
        }
        cdb
    }

    /// What became of a piece.
    pub fn ended(&mut self, device: &Passthrough, piece: &Piece, result: io::Result<Completion>) {
        match result {
            Ok(completion) => self.completed(device, piece, completion),
            Err(error) => self.refused(device, piece, &error),
        }
    }

    fn completed(&mut self, device: &Passthrough, piece: &Piece, completion: Completion) {
        let mut moved = u64::from(piece.len.saturating_sub(completion.residual));
        if let (Some(buffer), Direction::FromDevice) = (&piece.bounce, piece.direction) {
            let iov = self.data.peek(moved);
            Cursor::new(&iov).write(&buffer[..moved as usize]);
        }
        let mut verdict = judge(completion, device.descriptor_sense());
        if verdict.response == S_BAD_TARGET {
            device.attention.happened(GONE);
        }
        if !verdict.sense.is_empty() {
            let descriptor = sense::is_descriptor_format(&verdict.sense);
            device.descriptor_sense.store(descriptor, Ordering::Relaxed);
        }
        self.adjust(&mut verdict.sense);
        let good = verdict.response == S_OK && matches!(verdict.status, GOOD | CONDITION_MET);
        let recovered = verdict.status == CHECK_CONDITION
            && sense::sense_key(&verdict.sense) == Some(RECOVERED_ERROR);
        if recovered {
            self.recovered = Some(std::mem::take(&mut verdict.sense));
        }
        if let Some(before) = self.before_error(&verdict.sense).filter(|_| !recovered) {
            moved = moved.min(before);
        }
        let short = moved < u64::from(piece.len);
        let over = self.advance(piece, moved) || short;
        if !(good || recovered) {
            self.end = Some(Passed {
                response: verdict.response,
                status: verdict.status,
                sense: verdict.sense,
                transferred: self.data.done,
            });
        } else if over {
            self.end = Some(match self.recovered.take() {
                Some(sense) => Passed {
                    sense,
                    ..self.status(CHECK_CONDITION)
                },
                None => self.status(verdict.status),
            });
        }
    }

    /// Bytes of the piece that has just ended in front of the block that its sense data names. Of
    /// a split command the guest cannot tell which piece failed; hosts may count all of that one.
    fn before_error(&self, bytes: &[u8]) -> Option<u64> {
        let (Shape::Blocks { unit, done, .. }, Some(cdb)) = (&self.shape, &self.parsed) else {
            return None;
        };
        let medium = matches!(
            sense::sense_key(bytes),
            Some(key::MEDIUM_ERROR | key::HARDWARE_ERROR)
        );
        let blocks = sense::information(bytes)?.checked_sub(cdb.lba.checked_add(*done)?)?;
        (self.split && medium).then(|| blocks.saturating_mul(*unit))
    }

    /// Sense data of the piece that has just ended speaks of the whole command.
    fn adjust(&self, bytes: &mut [u8]) {
        match &self.shape {
            Shape::Unmap(pieces) => {
                sense::map_parameter_pointer(bytes, |pointer| pieces.original(pointer));
            }
            // The offset in data-out of the first byte that differs; other INFORMATION is an LBA.
            _ if sense::sense_key(bytes) == Some(key::MISCOMPARE) => {
                sense::add_to_information(bytes, self.data.done);
            }
            _ => {}
        }
    }

    /// Whether that was the last piece.
    fn advance(&mut self, piece: &Piece, moved: u64) -> bool {
        match &mut self.shape {
            Shape::Whole => {
                self.data.advance(moved);
                true
            }
            Shape::Blocks { unit, done, .. } => {
                *done += piece.blocks;
                let over = self.parsed.is_none_or(|cdb| *done >= cdb.count);
                match unit {
                    // Handed over whole with each piece.
                    0 if over => self.data.advance(moved),
                    0 => {}
                    _ => self.data.advance(moved),
                }
                over
            }
            Shape::Unmap(pieces) => {
                pieces.advance();
                let over = pieces.is_done();
                if over {
                    self.data.advance(self.data.len);
                }
                over
            }
        }
    }

    /// The host did not take a piece: it may take it in another form.
    fn refused(&mut self, device: &Passthrough, piece: &Piece, error: &io::Error) {
        let end = match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => {
                device.attention.happened(GONE);
                transport(S_BAD_TARGET)
            }
            // Without CAP_SYS_RAWIO the kernel has a filter of its own.
            Some(libc::EPERM | libc::EACCES) => {
                check_condition(device, INVALID_OPCODE.cdb_field(0, None))
            }
            Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => self.status(BUSY),
            Some(
                number @ (libc::EINVAL | libc::EIO | libc::E2BIG | libc::ENOMEM | libc::EFAULT),
            ) => match self.try_less(device, piece) {
                true => return,
                false if number == libc::ENOMEM => self.status(BUSY),
                false if number == libc::EFAULT => check_condition(device, DATA_PHASE_ERROR),
                false if piece.len == 0 => transport(S_TRANSPORT_FAILURE),
                false => check_condition(device, self.too_long()),
            },
            _ => transport(S_TRANSPORT_FAILURE),
        };
        self.end = Some(Passed {
            transferred: self.data.done,
            ..end
        });
    }

    /// Whether another form is left to be tried.
    fn try_less(&mut self, device: &Passthrough, piece: &Piece) -> bool {
        if piece.len > 0 {
            device.attention.happened(REFUSED);
        }
        if piece.bounce.is_none() && piece.len > 0 {
            self.must_bounce = true;
            return true;
        }
        if piece.blocks > 1 && self.unit() > 0 {
            self.most = u64::from(piece.len) / 2;
            self.split = true;
            return true;
        }
        false
    }

    fn status(&self, status: u8) -> Passed {
        Passed {
            response: S_OK,
            status,
            sense: Vec::new(),
            transferred: self.data.done,
        }
    }
}

fn shape(limits: &Limits, cdb: Option<&Cdb>, unit: u64, data: &[iovec]) -> Shape {
    let Some(cdb) = cdb else { return Shape::Whole };
    let blocks = |unit, most| Shape::Blocks {
        unit,
        most,
        done: 0,
    };
    match cdb.command {
        Command::Read | Command::Write | Command::WriteAndVerify if cdb.count > 0 => {
            blocks(unit, u64::MAX)
        }
        Command::Verify if cdb.bytchk() == 1 && cdb.count > 0 => blocks(unit, u64::MAX),
        Command::WriteSame if cdb.count > limits.max_write_same_blocks => {
            match limits.max_write_same_blocks {
                0 => Shape::Whole,
                most => blocks(0, most),
            }
        }
        Command::Unmap => {
            let mut list = vec![0; total(data) as usize];
            Cursor::new(data).read(&mut list);
            match unmap::Pieces::new(limits, &list) {
                Some(pieces) => Shape::Unmap(pieces),
                None => Shape::Whole,
            }
        }
        _ => Shape::Whole,
    }
}

fn transport(response: u8) -> Passed {
    Passed {
        response,
        status: GOOD,
        sense: Vec::new(),
        transferred: 0,
    }
}

fn check_condition(device: &Passthrough, info: SenseInfo) -> Passed {
    Passed {
        response: S_OK,
        status: CHECK_CONDITION,
        sense: build(&info, device.descriptor_sense()).as_bytes().to_vec(),
        transferred: 0,
    }
}

/// The guest's buffer, used up from its beginning.
struct Data {
    iov: Vec<iovec>,
    len: u64,
    done: u64,
    /// First entry not used up, and how much of it is.
    at: usize,
    skip: usize,
}

impl Data {
    fn new(iov: Vec<iovec>) -> Self {
        Self {
            len: total(&iov),
            iov,
            done: 0,
            at: 0,
            skip: 0,
        }
    }

    /// The next `len` bytes.
    fn peek(&self, len: u64) -> Vec<iovec> {
        let mut next = Vec::new();
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut skip = self.skip;
        for entry in &self.iov[self.at..] {
            if left == 0 {
                break;
            }
            let iov_len = (entry.iov_len - skip).min(left);
            next.push(iovec {
                iov_base: entry.iov_base.wrapping_byte_add(skip),
                iov_len,
            });
            left -= iov_len;
            skip = 0;
        }
        next
    }

    fn advance(&mut self, len: u64) {
        let len = len.min(self.len - self.done);
        self.done += len;
        let mut left = len as usize;
        while let Some(entry) = self.iov.get(self.at) {
            let rest = entry.iov_len - self.skip;
            if left < rest {
                self.skip += left;
                return;
            }
            left -= rest;
            self.at += 1;
            self.skip = 0;
        }
    }
}

//! Runs the XDP program's instructions one by one, and counts them.
//!
//! The kernel tells how many instructions its verifier went through and how long a packet took, but not how many
//! instructions that took, which depends on nothing but the packet. So this runs them, as RFC 9669 has them, with those
//! helpers of the kernel that the program calls. (The interpreters that are to be had as libraries don't know atomic
//! operations or functions that are passed to helpers.)
//!
//! All memory that the program may touch is a copy, in a region of an address space of its own: the frame, the context,
//! a stack for each function, and the values of maps, which are read from the kernel when they are looked up first. What
//! the program writes stays in the copies. Whatever is outside of them is an error, as it is to the verifier.

use aya_obj::generated::{BPF_PSEUDO_CALL, BPF_PSEUDO_FUNC, BPF_PSEUDO_MAP_FD, bpf_insn};
use aya_obj::{Map, Object};
use push_common::maps::{NIC_CONFIG, NicConfig, PROGRAM};
use push_ctl::dataplane;
use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// Bytes that a driver leaves in front of a frame.
const HEADROOM: u64 = 256;
const STACK_BYTES: u64 = 512;
/// Functions that may have called each other.
const MAX_DEPTH: u64 = 8;

/// Where regions begin. The context has 32 bits for the beginning of the frame.
const FRAME: u64 = 1 << 28;
const CONTEXT: u64 = 1 << 29;
const STACKS: u64 = 1 << 30;
const VALUES: u64 = 1 << 32;
/// Between two values of maps.
const VALUE_STEP: u64 = 1 << 16;

/// What the program sees of a map: never to be read from.
const MAPS: u64 = 1 << 48;

/// What went through the interpreter.
#[derive(Debug)]
pub(crate) struct Run {
    /// What the program returned (`XDP_PASS`, …).
    pub(crate) action: u64,
    /// The frame afterwards.
    pub(crate) frame: Vec<u8>,
    /// Instructions, those of functions that helpers called included.
    pub(crate) instructions: u32,
    /// Calls of helpers that aren't inlined by the kernel.
    pub(crate) helpers: u32,
    /// Atomic operations.
    pub(crate) atomics: u32,
    /// Instructions by step of the path, in its order; what is before the first one is of the first one.
    pub(crate) by_step: Vec<u32>,
}

/// The program for one NIC.
pub(crate) struct Interpreter {
    instructions: Vec<bpf_insn>,
    /// By the number that instructions call them by.
    maps: Vec<MapCopy>,
    memory: BTreeMap<u64, Vec<u8>>,
    /// The step of the path that each instruction is written in, if it is written there.
    steps: Vec<Option<usize>>,
    /// The step that it is at.
    step: usize,
    run: Run,
}

/// A map, and where those of its values are that have been looked up.
struct MapCopy {
    map: Map,
    /// That in the kernel; without one, all values are zeros.
    pinned: Option<aya::maps::MapData>,
    values: HashMap<Vec<u8>, u64>,
}

impl Interpreter {
    /// The program as it is loaded for a NIC with this configuration, with the maps that are pinned in this folder.
    pub(crate) fn new(config: &NicConfig, pin_dir: &Path) -> Self {
        let mut object = Object::parse(dataplane::object()).unwrap();
        let config = bytemuck::bytes_of(config);
        let globals = HashMap::from([(NIC_CONFIG, (config, true))]);
        object.patch_map_data(globals).unwrap();
        let named: Vec<(String, Map)> = object.maps.clone().into_iter().collect();
        let text = object.functions.keys().map(|(section, _)| *section);
        let text = text.collect();
        let numbered = (0..).zip(&named);
        let numbered = numbered.map(|(number, (name, map))| (name.as_str(), number, map));
        object.relocate_maps(numbered, &text).unwrap();
        object.relocate_calls(&text).unwrap();
        let key = object.programs[PROGRAM].function_key();
        let maps = named.into_iter().map(|(name, map)| MapCopy {
            pinned: aya::maps::MapData::from_pin(pin_dir.join(name)).ok(),
            map,
            values: HashMap::new(),
        });
        let program = &object.functions[&key];
        Self {
            steps: steps(program, &object.btf.as_ref().unwrap().to_bytes()),
            instructions: program.instructions.clone(),
            maps: maps.collect(),
            memory: BTreeMap::new(),
            step: 0,
            run: Run::nothing(),
        }
    }

    /// Gives a frame that came in by the NIC of this index to the program. What earlier ones have left in maps is
    /// forgotten.
    pub(crate) fn run(&mut self, frame: &[u8], interface: u32) -> Run {
        self.memory.clear();
        for map in &mut self.maps {
            map.values.clear();
        }
        self.run = Run::nothing();
        self.step = 0;
        let room = vec![0; HEADROOM as usize];
        self.memory.insert(FRAME, [&room, frame].concat());
        let begin = (FRAME + HEADROOM) as u32;
        let end = begin + u32::try_from(frame.len()).unwrap();
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [begin, end, begin, interface, 0, 0];
        self.memory
            .insert(CONTEXT, bytemuck::cast_slice(&context).to_vec());
        let stacks = vec![0; (STACK_BYTES * MAX_DEPTH) as usize];
        self.memory.insert(STACKS, stacks);
        let action = self.call(0, [CONTEXT, 0, 0, 0, 0], 0);
        let begin = self.load(CONTEXT, 4) - FRAME;
        let frame = self.memory[&FRAME][usize::try_from(begin).unwrap()..].to_vec();
        Run {
            action,
            frame,
            ..std::mem::replace(&mut self.run, Run::nothing())
        }
    }

    /// Runs the function that begins at `at`, `depth` calls down; returns what it does.
    fn call(&mut self, at: usize, arguments: [u64; 5], depth: u64) -> u64 {
        assert!(depth < MAX_DEPTH, "too many calls");
        let mut at = at;
        let mut registers = [0_u64; 11];
        registers[1..=5].copy_from_slice(&arguments);
        registers[10] = STACKS + STACK_BYTES * (depth + 1);
        loop {
            let instruction = self.instructions[at];
            let next = at + 1;
            at = next;
            self.count(next - 1);
            let (dst, src) = (
                usize::from(instruction.dst_reg()),
                usize::from(instruction.src_reg()),
            );
            let code = instruction.code;
            let immediate = i64::from(instruction.imm) as u64;
            let offset = i64::from(instruction.off) as u64;
            let operand = if code & 8 == 0 {
                immediate
            } else {
                registers[src]
            };
            match code & 7 {
                // BPF_LD: 64 bits, over two instructions.
                0 => {
                    assert_eq!(code, 0x18);
                    let high = self.instructions[next].imm;
                    registers[dst] = match instruction.src_reg().into() {
                        0 => u64::from(instruction.imm as u32) | u64::from(high as u32) << 32,
                        BPF_PSEUDO_MAP_FD => MAPS + immediate,
                        // Counted from the next instruction, like a call.
                        BPF_PSEUDO_FUNC => (next as u64).wrapping_add(immediate),
                        _ => self.section(instruction.imm as usize) + u64::from(high as u32),
                    };
                    at = next + 1;
                }
                // BPF_LDX.
                1 => {
                    let value = self.load(registers[src].wrapping_add(offset), size(code));
                    registers[dst] = match code & 0xE0 {
                        0x60 => value,
                        0x80 => sign_extended(value, size(code)),
                        _ => panic!("instruction {code:#x}"),
                    };
                }
                // BPF_ST and BPF_STX.
                2 => self.store(registers[dst].wrapping_add(offset), size(code), immediate),
                3 if code & 0xE0 == 0xC0 => {
                    let address = registers[dst].wrapping_add(offset);
                    let other = registers[src];
                    let before =
                        self.atomic(address, size(code), instruction.imm, other, registers[0]);
                    match instruction.imm {
                        COMPARE_AND_SWAP => registers[0] = before,
                        fetch if fetch & 1 != 0 => registers[src] = before,
                        _ => {}
                    }
                }
                3 => self.store(
                    registers[dst].wrapping_add(offset),
                    size(code),
                    registers[src],
                ),
                // BPF_END: the width is the immediate, and ours is the order to begin with.
                4 | 7 if code & 0xF0 == 0xD0 => {
                    let is_reversed = code != 0xD4;
                    registers[dst] = in_order(registers[dst], instruction.imm, is_reversed);
                }
                // BPF_ALU and BPF_ALU64.
                4 => {
                    registers[dst] =
                        arithmetic_32(code, instruction.off, registers[dst] as u32, operand as u32);
                }
                7 => {
                    registers[dst] = arithmetic_64(code, instruction.off, registers[dst], operand);
                }
                // BPF_JMP and BPF_JMP32.
                5 | 6 => match code & 0xF0 {
                    0x80 => {
                        let arguments = [1, 2, 3, 4, 5].map(|it: usize| registers[it]);
                        registers[0] = if u32::from(instruction.src_reg()) == BPF_PSEUDO_CALL {
                            let function = (next as u64).wrapping_add(immediate);
                            self.call(usize::try_from(function).unwrap(), arguments, depth + 1)
                        } else {
                            self.help(instruction.imm, arguments, depth)
                        };
                    }
                    0x90 => return registers[0],
                    _ => {
                        let is_long = code & 7 == 5;
                        if jumps(code, is_long, registers[dst], operand) {
                            let distance = if code == 0x06 { immediate } else { offset };
                            at = usize::try_from((next as u64).wrapping_add(distance)).unwrap();
                        }
                    }
                },
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    fn count(&mut self, at: usize) {
        self.step = self.steps[at].unwrap_or(self.step);
        self.run.instructions += 1;
        self.run.by_step.resize(STEPS.len(), 0);
        self.run.by_step[self.step] += 1;
    }

    /// What the kernel does for programs, as `bpf-helpers(7)` has it; a negative number is an error.
    fn help(&mut self, helper: i32, arguments: [u64; 5], depth: u64) -> u64 {
        // The kernel makes a few instructions of a lookup in an array.
        self.run.helpers += u32::from(helper != MAP_LOOKUP_ELEM);
        match helper {
            MAP_LOOKUP_ELEM => self.look_up(arguments[0], arguments[1]),
            KTIME_GET_NS | KTIME_GET_COARSE_NS => now_ns(),
            REDIRECT => 4,
            // Nothing is told while there is no room in the ring buffer.
            RINGBUF_RESERVE => 0,
            XDP_GET_BUFF_LEN => self.load(CONTEXT + 4, 4) - self.load(CONTEXT, 4),
            XDP_ADJUST_HEAD => {
                let begin = self.load(CONTEXT, 4).wrapping_add(arguments[1]);
                if begin < FRAME || begin + 14 > self.load(CONTEXT + 4, 4) {
                    return -22_i64 as u64;
                }
                self.store(CONTEXT, 4, begin);
                0
            }
            LOOP => {
                let [rounds, function, argument, ..] = arguments;
                let function = usize::try_from(function).unwrap();
                for round in 0..rounds {
                    if self.call(function, [round, argument, 0, 0, 0], depth + 1) != 0 {
                        return round + 1;
                    }
                }
                rounds
            }
            _ => panic!("helper {helper}"),
        }
    }

    /// The address of the value of this key; 0 if there is none.
    fn look_up(&mut self, map: u64, key: u64) -> u64 {
        let number = usize::try_from(map - MAPS).unwrap();
        let key = self.bytes(key, u64::from(self.maps[number].map.key_size()));
        if let Some(&address) = self.maps[number].values.get(&key) {
            return address;
        }
        let Some(value) = self.maps[number].read(&key) else {
            return 0;
        };
        let address = self.allocate(value);
        self.maps[number].values.insert(key, address);
        address
    }

    /// The address of the data of a section (`.rodata`, …).
    fn section(&mut self, number: usize) -> u64 {
        let map = &self.maps[number];
        if let Some(&address) = map.values.get(&Vec::new()) {
            return address;
        }
        let data = map.map.data().to_vec();
        let address = self.allocate(data);
        self.maps[number].values.insert(Vec::new(), address);
        address
    }

    fn allocate(&mut self, bytes: Vec<u8>) -> u64 {
        let address = VALUES + self.memory.len() as u64 * VALUE_STEP;
        assert!((bytes.len() as u64) < VALUE_STEP, "a value is too long");
        self.memory.insert(address, bytes);
        address
    }

    /// So many bytes of memory, if all of them are in one region.
    fn at(&mut self, address: u64, count: u64) -> &mut [u8] {
        let (begin, region) = self.memory.range_mut(..=address).next_back().unwrap();
        let at = usize::try_from(address - begin).unwrap();
        let end = at + usize::try_from(count).unwrap();
        assert!(end <= region.len(), "nothing is at {address:#x}");
        &mut region[at..end]
    }

    fn bytes(&mut self, address: u64, count: u64) -> Vec<u8> {
        self.at(address, count).to_vec()
    }

    fn load(&mut self, address: u64, size: u64) -> u64 {
        let mut word = [0; 8];
        word[..usize::try_from(size).unwrap()].copy_from_slice(self.at(address, size));
        u64::from_le_bytes(word)
    }

    fn store(&mut self, address: u64, size: u64, value: u64) {
        let bytes = &value.to_le_bytes()[..usize::try_from(size).unwrap()];
        self.at(address, size).copy_from_slice(bytes);
    }

    /// Does an atomic operation; returns what was there before.
    fn atomic(
        &mut self,
        address: u64,
        size: u64,
        operation: i32,
        operand: u64,
        expected: u64,
    ) -> u64 {
        assert_eq!(address % size, 0, "an atomic operation at {address:#x}");
        self.run.atomics += 1;
        let before = self.load(address, size);
        let expected = if size == 4 {
            u64::from(expected as u32)
        } else {
            expected
        };
        let after = match operation & !1 {
            0x00 => before.wrapping_add(operand),
            0x40 => before | operand,
            0x50 => before & operand,
            0xA0 => before ^ operand,
            0xE0 => operand,
            0xF0 if before == expected => operand,
            0xF0 => before,
            _ => panic!("atomic operation {operation:#x}"),
        };
        self.store(address, size, after);
        before
    }
}

impl MapCopy {
    /// The value of this key in the kernel, of the first CPU.
    fn read(&self, key: &[u8]) -> Option<Vec<u8>> {
        let size = self.map.value_size() as usize;
        let is_array = matches!(self.map.map_type(), ARRAY | PERCPU_ARRAY);
        let Some(pinned) = &self.pinned else {
            return is_array.then(|| vec![0; size]);
        };
        let cpus = aya::util::nr_cpus().unwrap();
        let mut value = vec![0; size.next_multiple_of(8) * cpus];
        let attributes = ElementAttributes {
            map_fd: pinned.fd().as_fd().as_raw_fd().cast_unsigned(),
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            ..ElementAttributes::default()
        };
        #[expect(
            unsafe_code,
            reason = "aya wants to know the length of values at compile time"
        )]
        // SAFETY: the key is as long as one of the map's, and the value at least as long as one for each CPU.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_ELEM,
                &raw const attributes,
                size_of::<ElementAttributes>(),
            )
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
            return None;
        }
        value.truncate(size);
        Some(value)
    }
}

impl Run {
    const fn nothing() -> Self {
        Self {
            action: 0,
            frame: Vec::new(),
            instructions: 0,
            helpers: 0,
            atomics: 0,
            by_step: Vec::new(),
        }
    }
}

/// Where the path is, and its source.
const PATH: (&str, &str) = (
    "push-ebpf/src/main.rs",
    include_str!("../../push-ebpf/src/main.rs"),
);

/// Steps of the path, as the comments there have them.
pub(crate) const STEPS: [&str; 10] = [
    "Parse:",
    "Ours?",
    "Trigger:",
    "Session:",
    "Tag:",
    "Policy:",
    "Next hop:",
    "Replay:",
    "Rate,",
    "Send:",
];

/// The step that this line of the path is in.
fn step_at(line: u32) -> Option<usize> {
    let lines = PATH.1.lines().take(line as usize).collect::<Vec<_>>();
    lines.iter().rev().find_map(|line| {
        let comment = line.strip_prefix("    // ")?;
        STEPS.iter().position(|step| comment.starts_with(step))
    })
}

/// The step that each instruction of `program` is written in. The lines that they come from are in its BTF.
fn steps(program: &aya_obj::Function, btf: &[u8]) -> Vec<Option<usize>> {
    let word = |at: usize| u32::from_le_bytes(btf[at..at + 4].try_into().unwrap()) as usize;
    // struct btf_header: the length of it, and from its end on, where strings begin.
    let strings = &btf[word(4) + word(16)..];
    let mut infos = program.line_info.line_info.clone();
    infos.sort_by_key(|info| info.insn_off);
    let mut steps = vec![None; program.instructions.len()];
    for info in infos {
        let file = &strings[info.file_name_off as usize..];
        let file = CStr::from_bytes_until_nul(file).unwrap().to_str().unwrap();
        let is_path = file.ends_with(PATH.0);
        let step = is_path.then(|| step_at(info.line_col >> 10)).flatten();
        steps[info.insn_off as usize..].fill(step);
    }
    steps
}

/// What `BPF_MAP_LOOKUP_ELEM` takes (`union bpf_attr` in `linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;

/// `BPF_CMPXCHG`, which fetches always.
const COMPARE_AND_SWAP: i32 = 0xF1;

const MAP_LOOKUP_ELEM: i32 = 1;
const KTIME_GET_NS: i32 = 5;
const REDIRECT: i32 = 23;
const XDP_ADJUST_HEAD: i32 = 44;
const RINGBUF_RESERVE: i32 = 131;
const KTIME_GET_COARSE_NS: i32 = 160;
const LOOP: i32 = 181;
const XDP_GET_BUFF_LEN: i32 = 188;

/// Bytes that a load or a store has.
const fn size(code: u8) -> u64 {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

/// The value of so many bytes, as a signed one.
const fn sign_extended(value: u64, size: u64) -> u64 {
    match size {
        1 => value as i8 as i64 as u64,
        2 => value as i16 as i64 as u64,
        4 => value as i32 as i64 as u64,
        _ => value,
    }
}

/// The last so many bits of a word, as they are or with the bytes the other way round.
fn in_order(word: u64, bits: i32, is_reversed: bool) -> u64 {
    match (bits, is_reversed) {
        (16, false) => u64::from(word as u16),
        (16, true) => u64::from((word as u16).swap_bytes()),
        (32, false) => u64::from(word as u32),
        (32, true) => u64::from((word as u32).swap_bytes()),
        (_, false) => word,
        (_, true) => word.swap_bytes(),
    }
}

fn arithmetic_64(code: u8, offset: i16, a: u64, b: u64) -> u64 {
    match code & 0xF0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 if offset == 0 => a.checked_div(b).unwrap_or(0),
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a << (b & 63),
        0x70 => a >> (b & 63),
        0x80 => a.wrapping_neg(),
        0x90 if offset == 0 => a.checked_rem(b).unwrap_or(a),
        0xA0 => a ^ b,
        0xB0 if offset == 0 => b,
        0xB0 => sign_extended(b, u64::from(offset.unsigned_abs()) / 8),
        0xC0 => (a.cast_signed() >> (b & 63)).cast_unsigned(),
        _ => panic!("instruction {code:#x}"),
    }
}

fn arithmetic_32(code: u8, offset: i16, a: u32, b: u32) -> u64 {
    let result = match code & 0xF0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 if offset == 0 => a.checked_div(b).unwrap_or(0),
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a << (b & 31),
        0x70 => a >> (b & 31),
        0x80 => a.wrapping_neg(),
        0x90 if offset == 0 => a.checked_rem(b).unwrap_or(a),
        0xA0 => a ^ b,
        0xB0 if offset == 0 => b,
        0xB0 => sign_extended(u64::from(b), u64::from(offset.unsigned_abs()) / 8) as u32,
        0xC0 => (a.cast_signed() >> (b & 31)).cast_unsigned(),
        _ => panic!("instruction {code:#x}"),
    };
    u64::from(result)
}

const fn jumps(code: u8, is_long: bool, a: u64, b: u64) -> bool {
    let (a, b, signed_a, signed_b) = if is_long {
        (a, b, a.cast_signed(), b.cast_signed())
    } else {
        let (a, b) = (a as u32, b as u32);
        let signed = (a.cast_signed() as i64, b.cast_signed() as i64);
        (a as u64, b as u64, signed.0, signed.1)
    };
    match code & 0xF0 {
        0x00 => true,
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        0x50 => a != b,
        0x60 => signed_a > signed_b,
        0x70 => signed_a >= signed_b,
        0xA0 => a < b,
        0xB0 => a <= b,
        0xC0 => signed_a < signed_b,
        0xD0 => signed_a <= signed_b,
        _ => panic!("no such jump"),
    }
}

fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}

package podinit

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"unsafe"
)

// codeSize is at least the size of the reaper's code.
const codeSize = 192

// loadAddress is where the program's one segment is mapped.
const loadAddress = 0x400000

// reaperAddress is where the reaper's code lies in this program.
func reaperAddress() uintptr

// Program is the ELF file of the reaper: headers and code, nothing else. What
// follows the code in the copy is never executed. Any architecture's Linux and
// what stands for one can run it: it reads no file and takes no argument.
func Program() ([]byte, error) {
	header := elf.Header64{
		Ident:     [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:      uint16(elf.ET_EXEC),
		Machine:   uint16(machine),
		Version:   uint32(elf.EV_CURRENT),
		Phentsize: uint16(binary.Size(elf.Prog64{})),
		Phnum:     2,
	}
	headers := uint64(binary.Size(header)) + uint64(header.Phnum)*uint64(header.Phentsize)
	header.Ehsize = uint16(binary.Size(header))
	header.Phoff = uint64(header.Ehsize)
	header.Entry = loadAddress + headers
	segments := []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: loadAddress, Paddr: loadAddress, Filesz: headers + codeSize, Memsz: headers + codeSize, Align: 64 << 10},
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)}, // a stack that is not executable
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, header); err != nil {
		return nil, err
	}
	if err := binary.Write(&b, binary.LittleEndian, segments); err != nil {
		return nil, err
	}
	b.Write(code())
	return b.Bytes(), nil
}

// code is the reaper's machine code.
func code() []byte {
	address := reaperAddress()
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&address)), codeSize)
}

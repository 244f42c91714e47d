package logs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// cursorName is the cursor's file, beside the FIFOs.
const cursorName = "log.cursor"

// cursorVersion is the first field of the file; see FORMAT.md.
const cursorVersion = 1

const cursorSize = 48

// castagnoli is made when it is needed: the supervisor's program is executed
// for each process of a container, which needs none.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// A move is a batch on its way from a FIFO into the log file.
type move struct {
	stream uint32 // place in IO.pumps, counted from 1; 0: no move is under way
	taken  uint32 // bytes of the FIFO
	sum    uint32 // and their CRC-32C
	added  uint32 // bytes of entries
	dev    uint64 // the log file
	ino    uint64
	size   int64 // and its size before
}

// A cursor is the file that says which move is under way. Each write is one
// page at most, so a killed daemon leaves the old or the new content.
type cursor struct{ f *os.File }

// openCursor opens the cursor and reads the move that an earlier daemon left.
func openCursor(path string) (*cursor, move, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, move{}, err
	}
	c := &cursor{f}
	var raw [cursorSize]byte
	n, _ := f.ReadAt(raw[:], 0)
	e := binary.LittleEndian
	if n < cursorSize {
		return c, move{}, c.set(move{}) // new: the page is allocated now
	}
	if v := e.Uint32(raw[:]); v != cursorVersion {
		f.Close()
		return nil, move{}, fmt.Errorf("%s has version %d, this berth knows %d: start the berth that wrote it: %w", path, v, cursorVersion, errdefs.ErrFailedPrecondition)
	}
	return c, move{
		stream: e.Uint32(raw[4:]),
		taken:  e.Uint32(raw[8:]),
		sum:    e.Uint32(raw[12:]),
		added:  e.Uint32(raw[16:]),
		dev:    e.Uint64(raw[24:]),
		ino:    e.Uint64(raw[32:]),
		size:   int64(e.Uint64(raw[40:])),
	}, nil
}

func (c *cursor) set(m move) error {
	var raw [cursorSize]byte
	e := binary.LittleEndian
	e.PutUint32(raw[:], cursorVersion)
	e.PutUint32(raw[4:], m.stream)
	e.PutUint32(raw[8:], m.taken)
	e.PutUint32(raw[12:], m.sum)
	e.PutUint32(raw[16:], m.added)
	e.PutUint64(raw[24:], m.dev)
	e.PutUint64(raw[32:], m.ino)
	e.PutUint64(raw[40:], uint64(m.size))
	_, err := c.f.WriteAt(raw[:], 0)
	return err
}

// clear says that no move is under way.
func (c *cursor) clear() error {
	var none [4]byte
	_, err := c.f.WriteAt(none[:], 4)
	return err
}

func checksum(data []byte) uint32 { return crc32.Checksum(data, castagnoli()) }

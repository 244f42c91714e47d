package logs

import (
	"bytes"
	"time"
)

// maxLine is the most that one entry holds of a line; a longer line is split
// into entries with tag P, the last one with tag F.
const maxLine = 16 << 10

// timestamp is RFC 3339 with nine digits always, so that entries sort.
const timestamp = "2006-01-02T15:04:05.000000000Z07:00"

// appendEntries appends to out the log entries for the lines in data, and says
// how many bytes of data they cover. What they do not cover is the beginning
// of a line, at most maxLine bytes long. With flush that is covered too, by an
// entry with tag P: the kubelet and crictl join P entries of a stream up to
// the next F, and print the last one without a newline.
//
// Bytes are kept as they are, carriage returns included.
func appendEntries(out, data []byte, stream string, now time.Time, flush bool) ([]byte, int) {
	var room [len(timestamp) + 16]byte
	full := now.UTC().AppendFormat(room[:0], timestamp)
	full = append(full, ' ')
	full = append(full, stream...)
	full = append(full, " F "...)
	took := 0
	for rest := data; len(rest) > 0; rest = data[took:] {
		end := bytes.IndexByte(rest[:min(len(rest), maxLine+1)], '\n')
		switch {
		case end >= 0:
			out = append(out, full...)
			out = append(out, rest[:end+1]...)
			took += end + 1
			continue
		case len(rest) > maxLine:
			end = maxLine
		case flush:
			end = len(rest)
		default:
			return out, took
		}
		out = append(out, full...)
		out[len(out)-2] = 'P'
		out = append(out, rest[:end]...)
		out = append(out, '\n')
		took += end
	}
	return out, took
}

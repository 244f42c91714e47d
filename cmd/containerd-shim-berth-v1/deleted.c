// containerd executes this program with the action "delete" each time that it
// closes a connection to a task. There is nothing to do, and nothing of the Go
// program is needed to say so: this runs before its runtime starts.

#include <string.h>
#include <time.h>
#include <unistd.h>

// varint appends v as protobuf encodes it.
static unsigned char *varint(unsigned char *to, unsigned long long v)
{
	for (; v >= 0x80; v >>= 7)
		*to++ = (unsigned char)v | 0x80;
	*to++ = (unsigned char)v;
	return to;
}

// answer writes containerd.task.v3.DeleteResponse: exit_status 255, for the
// container's own is not known here, and exited_at now.
static void __attribute__((constructor)) answer(int argc, char **argv)
{
	unsigned char out[32], at[16], *end = out, *at_end = at;
	long length, said;

	if (argc < 3 || strcmp(argv[1], "-namespace") != 0 || strcmp(argv[argc - 1], "delete") != 0)
		return;
	*at_end++ = 1 << 3; // Timestamp.seconds
	at_end = varint(at_end, (unsigned long long)time(NULL));
	*end++ = 2 << 3; // exit_status
	end = varint(end, 255);
	*end++ = 3 << 3 | 2; // exited_at
	*end++ = (unsigned char)(at_end - at);
	memcpy(end, at, (size_t)(at_end - at));
	end += at_end - at;
	length = end - out;
	said = write(STDOUT_FILENO, out, (size_t)length);
	_exit(said == length ? 0 : 1);
}

/* The program of every container that is measured, and the pause program of the
 * peer: static, small, started at once, and no work of its own.
 *
 *   work idle              sleep until SIGTERM or SIGINT
 *   work lines BYTES FIFO  once FIFO can be read, write BYTES of 80-byte lines
 *   true                   exit
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LINE = 80, LINES = 800 };

static void leave(int sig)
{
	(void)sig;
	_exit(0);
}

static void reap(int sig)
{
	(void)sig;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static int idle(void)
{
	struct sigaction on_child = { .sa_handler = reap };
	struct sigaction on_end = { .sa_handler = leave };

	if (sigaction(SIGCHLD, &on_child, NULL) || sigaction(SIGINT, &on_end, NULL) || sigaction(SIGTERM, &on_end, NULL))
		return 1;
	for (;;)
		pause();
}

static int all(const char *p, size_t n)
{
	while (n > 0) {
		ssize_t w = write(1, p, n);
		if (w <= 0)
			return -1;
		p += w;
		n -= (size_t)w;
	}
	return 0;
}

/* The last line begins with "end", all others with "line". */
static int lines(long long bytes, const char *fifo)
{
	static char block[LINE * LINES];
	char byte;
	int fd = open(fifo, O_RDONLY);

	if (fd < 0 || read(fd, &byte, 1) < 0)
		return 2;
	memset(block, '.', sizeof block);
	for (int i = 0; i < LINES; i++) {
		memcpy(block + i * LINE, "line", 4);
		block[i * LINE + LINE - 1] = '\n';
	}
	bytes = bytes / LINE * LINE - LINE;
	while (bytes > 0) {
		size_t n = bytes < (long long)sizeof block ? (size_t)bytes : sizeof block;
		if (all(block, n))
			return 3;
		bytes -= (long long)n;
	}
	memcpy(block, "end.", 4);
	return all(block, LINE) ? 3 : 0;
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');

	name = name ? name + 1 : argv[0];
	if (!strcmp(name, "true"))
		return 0;
	if (argc == 4 && !strcmp(argv[1], "lines"))
		return lines(atoll(argv[2]), argv[3]);
	if (argc == 2 && !strcmp(argv[1], "idle"))
		return idle();
	fprintf(stderr, "usage: work idle | work lines BYTES FIFO\n");
	return 64;
}

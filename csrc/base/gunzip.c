/* A gzip stream from its beginning on, with the points where spans may begin. For one thread at a time. */
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "pyerofs.h"
#include "span.h"

enum { GZIP = 31 }; /* windowBits of inflateInit2 */
enum { BITS = 7, LAST_BLOCK = 64, AT_BLOCK = 128 }; /* of z_stream.data_type */

struct pe_gunzip {
	z_stream stream;
	uint64_t spacing;
	uint64_t in, out;
	uint64_t last; /* the point before, in plain bytes */
	bool any; /* point */
	bool ended; /* the member */
};

int pe_gunzip_open(uint64_t spacing, pe_gunzip **gunzip)
{
	pe_gunzip *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	if (inflateInit2(&g->stream, GZIP) != Z_OK) {
		free(g);
		return -ENOMEM;
	}
	g->spacing = spacing;
	*gunzip = g;
	return 0;
}

void pe_gunzip_free(pe_gunzip *g)
{
	inflateEnd(&g->stream);
	free(g);
}

static bool is_point(const pe_gunzip *g)
{
	int type = g->stream.data_type;

	if (!g->spacing || !(type & AT_BLOCK) || (type & LAST_BLOCK))
		return false;
	return !g->any || g->out - g->last > g->spacing;
}

int pe_gunzip_step(pe_gunzip *g, const void *input, uint64_t input_length, void *output, uint64_t output_length,
		   struct pe_gunzip_step *step)
{
	z_stream *stream = &g->stream;
	uint64_t in = g->in, out = g->out;
	int result = PE_GUNZIP_MORE;

	memset(step, 0, sizeof(*step));
	if (input_length > UINT_MAX || output_length > UINT_MAX)
		return -EINVAL;
	if (g->ended && input_length) {
		inflateReset(stream);
		g->ended = false;
	}
	stream->next_in = (unsigned char *)input; /* zlib does not write there */
	stream->avail_in = (unsigned)input_length;
	stream->next_out = output;
	stream->avail_out = (unsigned)output_length;
	/* What is left of a match waits for room within zlib, so that there may be output without input. */
	while (!g->ended && stream->avail_out) {
		int done = inflate(stream, g->spacing ? Z_BLOCK : Z_NO_FLUSH);
		int failed = inflate_failed(done);

		g->in = in + input_length - stream->avail_in;
		g->out = out + output_length - stream->avail_out;
		if (failed) {
			result = failed < 0 ? failed : PE_GUNZIP_CORRUPT;
			break;
		}
		if (done == Z_STREAM_END) {
			g->ended = true;
			result = PE_GUNZIP_MEMBER;
		} else if (is_point(g)) {
			g->any = true;
			g->last = g->out;
			result = PE_GUNZIP_POINT;
			step->bits = (uint32_t)stream->data_type & BITS;
			break;
		} else if (!stream->avail_in) {
			break;
		}
	}
	step->consumed = input_length - stream->avail_in;
	step->produced = output_length - stream->avail_out;
	step->in = g->in;
	step->out = g->out;
	stream->next_in = NULL;
	stream->next_out = NULL;
	stream->avail_in = stream->avail_out = 0;
	return result;
}

int64_t pe_gunzip_window(pe_gunzip *g, void *window)
{
	unsigned length = 0;
	unsigned char *bytes = window;

	memset(window, 0, PE_WINDOW);
	if (inflateGetDictionary(&g->stream, window, &length) != Z_OK)
		return -EINVAL;
	if (length < PE_WINDOW) {
		memmove(bytes + PE_WINDOW - length, bytes, length);
		memset(bytes, 0, PE_WINDOW - length);
	}
	return length;
}

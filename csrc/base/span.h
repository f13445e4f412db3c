/* Inflating with zlib, as span.c and gunzip.c both do. */
#ifndef PE_SPAN_H
#define PE_SPAN_H

/* What inflate() returned, as an error: 0 where it is none, -ENOMEM, or 1 where the stream is corrupt. */
int inflate_failed(int result);

#endif
